"""ONNX export of a policy, imported as smolvla_edge.export. Importing this package needs nothing;
a file of it that needs a package of the extra `export` says so in a MissingExtraError.

Read in this order: exporter.py (the whole), graphs.py (one graph each), vision.py, prefix.py,
flow.py, layers.py (what is traced), stored.py and forms.py (the weights), loop.py, joining.py,
policy_graph.py (one file of all). For TensorRT: tensorrt.py, plain.py, fixed_flow.py,
plain_stored.py, tensorrt_check.py. command.py is what both command lines call.
"""
