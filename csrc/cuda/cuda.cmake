# The CUDA backend for nvcc: target smolvla_cuda, made when SMOLVLA_CUDA asks for it. Included by the
# root, because a language is enabled where its targets are linked.
#
# Configuring works without CUDA: AUTO leaves the backend out when there is no nvcc, or no GPU to
# compile for; ON is an error without nvcc. The runtime is linked statically: importing needs no
# driver and no CUDA on the machine.
include(csrc/cuda/architectures.cmake)
include(csrc/cuda/sources.cmake)

set(smolvla_with_cuda OFF)
if(SMOLVLA_CUDA STREQUAL "EMULATED")
  add_subdirectory(tests/cuda/emulator)
elseif(NOT SMOLVLA_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(smolvla_with_cuda ON)
  elseif(SMOLVLA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SMOLVLA_CUDA=ON: no nvcc was found. Put it on PATH, or name it with "
                        "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc")
  endif()
endif()

set(smolvla_cuda_archs ${SMOLVLA_CUDA_ARCHS})
set(smolvla_known_archs)
if(smolvla_with_cuda AND SMOLVLA_CUDA STREQUAL "AUTO" AND NOT smolvla_cuda_archs)
  smolvla_gpus_here(smolvla_cuda_archs /proc/device-tree/compatible)
  smolvla_archs_of_compiler(smolvla_known_archs ${CMAKE_CUDA_COMPILER})
  if(NOT smolvla_cuda_archs)
    message(STATUS "CUDA backend: left out. nvcc is here, and no GPU of compute capability 8.0 or "
                   "later that nvidia-smi shows. For all GPUs: -DSMOLVLA_CUDA=ON (with pip: -C "
                   "cmake.define.SMOLVLA_CUDA=ON); for one kind: -DSMOLVLA_CUDA_ARCHS=87 (Orin)")
    set(smolvla_with_cuda OFF)
  endif()
endif()

if(smolvla_with_cuda)
  if(NOT SMOLVLA_CUDA_ARCHS)
    # For configuring alone: a CMake older than the compiler would choose one that is gone.
    set(CMAKE_CUDA_ARCHITECTURES 80)
  endif()
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.2)
    set(why "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: 12.2 is the oldest that the CUDA backend compiles with")
    if(SMOLVLA_CUDA STREQUAL "ON")
      message(FATAL_ERROR "${why}")
    endif()
    message(STATUS "CUDA backend: left out. ${why}")
    set(smolvla_with_cuda OFF)
  endif()
endif()

if(smolvla_with_cuda)
  if(NOT smolvla_cuda_archs)
    set(smolvla_cuda_archs 80 87 89 90)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND smolvla_cuda_archs 100 120)
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
      list(APPEND smolvla_cuda_archs 110)
    endif()
  endif()
  smolvla_cuda_architectures(smolvla_cuda_archs "${smolvla_cuda_archs}" "${smolvla_known_archs}")
  add_library(smolvla_cuda STATIC ${SMOLVLA_CUDA_SOURCES})
  set_target_properties(smolvla_cuda PROPERTIES
                        CUDA_ARCHITECTURES "${smolvla_cuda_archs}")
  # -fmad=false: on the GPU too, a multiplication and an addition round twice unless fmaf is written.
  target_compile_options(smolvla_cuda PRIVATE -fmad=false
                         -Xcompiler=-Wall,-Wextra,-ffp-contract=off
                         $<$<BOOL:${SMOLVLA_WERROR}>:--Werror=all-warnings>)
  target_link_libraries(smolvla_cuda PUBLIC smolvla_core)
  # For C++ that includes kernels.h: the bindings.
  target_include_directories(smolvla_cuda SYSTEM PUBLIC ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${smolvla_cuda_archs}")
endif()
