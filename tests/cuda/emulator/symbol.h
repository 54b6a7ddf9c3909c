// The name of a function by its address, out of the symbol table of the file that holds it.
#pragma once

#include <string>

namespace emulator {

std::string symbol_name(const void* function);

}  // namespace emulator
