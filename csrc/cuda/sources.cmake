# The one list of CUDA sources: for nvcc (the root) and for the emulator (tests/cuda).
set(SMOLVLA_CUDA_SOURCES
  csrc/cuda/attention.cu
  csrc/cuda/backend.cu
  csrc/cuda/devices.cu
  csrc/cuda/gemm_bf16.cu
  csrc/cuda/gemm_f32.cu
  csrc/cuda/gemm_i8.cu
  csrc/cuda/gemm_w4.cu
  csrc/cuda/graphs.cu
  csrc/cuda/image.cu
  csrc/cuda/memory.cu
  csrc/cuda/pack_codes.cu
  csrc/cuda/positions.cu
  csrc/cuda/reuse.cu
  csrc/cuda/rows.cu
  csrc/cuda/weights.cu)
