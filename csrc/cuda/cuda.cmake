# The CUDA backend for nvcc: target smolvla_cuda, made when SMOLVLA_CUDA asks for it. Included by the
# root, because a language is enabled where its targets are linked.
#
# Configuring works without CUDA: AUTO leaves the backend out when there is no nvcc; ON is an error
# then. The runtime is linked statically: importing needs no driver and no CUDA on the machine.
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
  # Machine code for each, and PTX of the lowest for what comes after.
  set(smolvla_cuda_archs ${SMOLVLA_CUDA_ARCHS})
  if(NOT smolvla_cuda_archs)
    set(smolvla_cuda_archs 80 87 89 90)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND smolvla_cuda_archs 100 120)
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
      list(APPEND smolvla_cuda_archs 110)
    endif()
  endif()
  list(SORT smolvla_cuda_archs COMPARE NATURAL)
  list(GET smolvla_cuda_archs 0 lowest)
  list(TRANSFORM smolvla_cuda_archs APPEND -real)
  add_library(smolvla_cuda STATIC ${SMOLVLA_CUDA_SOURCES})
  set_target_properties(smolvla_cuda PROPERTIES
                        CUDA_ARCHITECTURES "${smolvla_cuda_archs};${lowest}-virtual")
  # -fmad=false: on the GPU too, a multiplication and an addition round twice unless fmaf is written.
  target_compile_options(smolvla_cuda PRIVATE -fmad=false
                         -Xcompiler=-Wall,-Wextra,-ffp-contract=off
                         $<$<BOOL:${SMOLVLA_WERROR}>:--Werror=all-warnings>)
  target_link_libraries(smolvla_cuda PUBLIC smolvla_core)
  # For C++ that includes kernels.h: the bindings.
  target_include_directories(smolvla_cuda SYSTEM PUBLIC ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${smolvla_cuda_archs}")
endif()
