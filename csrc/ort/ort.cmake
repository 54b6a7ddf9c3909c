# The operators for ONNX Runtime: a library of its own beside _core, without Python in it, and
# without the runtime's headers (ort/abi.h).
add_library(smolvla_edge_ort MODULE
  csrc/ort/columns.cpp
  csrc/ort/denoise_step.cpp
  csrc/ort/expert_attention.cpp
  csrc/ort/linear_codes.cpp
  csrc/ort/register.cpp
  csrc/ort/scratch.cpp
  csrc/ort/tensors.cpp)
set_target_properties(smolvla_edge_ort PROPERTIES PREFIX ""
                      LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/ort/exports.map)
target_link_libraries(smolvla_edge_ort PRIVATE smolvla_core)
# One symbol: a process may hold several libraries of kernels, and each keeps its own.
target_link_options(smolvla_edge_ort PRIVATE
                    -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/csrc/ort/exports.map)
