# Which GPUs the CUDA backend is compiled for: seven architectures take minutes, one a seventh.
#
#   SMOLVLA_CUDA_ARCHS   those, whatever SMOLVLA_CUDA is
#   SMOLVLA_CUDA=ON      all that tests/compile holds the kernels to, as far as this nvcc knows them
#   SMOLVLA_CUDA=AUTO    the GPUs of this machine; without one the backend is left out
#
# Lists are of compute capabilities without the dot: 87 is 8.7.

# The GPUs here that the backend can use, each kind once. None where they cannot be seen, as in most
# containers while they are built, and none of a machine that is built for on another one.
# `device_tree`: the file in which a Jetson says what it is; before JetPack 6 it has no nvidia-smi.
function(smolvla_gpus_here result device_tree)
  set(gpus)
  if(NOT DEFINED SMOLVLA_GPUS_SECONDS)
    set(SMOLVLA_GPUS_SECONDS 30)  # the driver may have to start, some seconds for each GPU
  endif()
  if(NOT CMAKE_CROSSCOMPILING)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                    TIMEOUT ${SMOLVLA_GPUS_SECONDS} RESULT_VARIABLE status
                    OUTPUT_VARIABLE said ERROR_QUIET)
    if(status EQUAL 0)
      string(REPLACE "\n" ";" lines "${said}")
      foreach(line IN LISTS lines)
        if(line MATCHES "^ *([0-9]+)\\.([0-9]) *$")
          list(APPEND gpus ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
        endif()
      endforeach()
    endif()
    if(NOT gpus AND EXISTS "${device_tree}")
      file(STRINGS "${device_tree}" compatible)
      if(compatible MATCHES "nvidia,tegra234")  # Orin
        set(gpus 87)
      elseif(compatible MATCHES "nvidia,tegra264")  # Thor
        set(gpus 110)
      endif()
    endif()
  endif()
  list(FILTER gpus EXCLUDE REGEX "^[1-7].$")
  list(REMOVE_DUPLICATES gpus)
  set(${result} ${gpus} PARENT_SCOPE)
endfunction()

# What `nvcc` can compile for; nothing where it does not say.
function(smolvla_archs_of_compiler result nvcc)
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE said ERROR_QUIET)
  string(REGEX MATCHALL "compute_[0-9]+\n" lines "${said}\n")
  string(REGEX MATCHALL "[0-9]+" known "${lines}")
  set(${result} ${known} PARENT_SCOPE)
endfunction()

# As CUDA_ARCHITECTURES has them: machine code for each of `wanted`, and PTX of the lowest for what
# comes after. One that is not among `known` (if that is given) gets PTX of the newest before it.
function(smolvla_cuda_architectures result wanted known)
  set(machine_code)
  set(ptx)
  foreach(arch IN LISTS wanted)
    if(NOT known OR arch IN_LIST known)
      list(APPEND machine_code ${arch})
      continue()
    endif()
    set(newest 0)
    foreach(other IN LISTS known)
      if(other LESS arch AND other GREATER newest)
        set(newest ${other})
      endif()
    endforeach()
    message(STATUS "CUDA backend: this nvcc knows no sm_${arch}. It gets PTX of compute_${newest}, "
                   "which the driver compiles when it is first loaded")
    list(APPEND ptx ${newest})
  endforeach()
  if(machine_code)
    list(SORT machine_code COMPARE NATURAL)
    list(GET machine_code 0 lowest)
    list(APPEND ptx ${lowest})
    list(TRANSFORM machine_code APPEND -real)
  endif()
  list(REMOVE_DUPLICATES ptx)
  list(TRANSFORM ptx APPEND -virtual)
  set(${result} ${machine_code} ${ptx} PARENT_SCOPE)
endfunction()
