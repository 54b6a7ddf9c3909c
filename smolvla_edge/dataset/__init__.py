"""LeRobotDataset v3.0 folders, read and written without LeRobot (extra `data`).

    recorded = read_dataset("my_dataset")
    for frame in recorded.frames(episode=3):
        frame.images, frame.state, frame.action, frame.task

The layout is in layout.py. What this package writes, LeRobot opens.
"""

from smolvla_edge.dataset.reader import Frame, RecordedDataset, read_dataset
from smolvla_edge.dataset.writer import DatasetWriter

__all__ = ["DatasetWriter", "Frame", "RecordedDataset", "read_dataset"]
