#include "symbol.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace emulator {

namespace {

// A static function has no dynamic symbol, so the file itself is read. Only errors need names.
std::string from_file(const char* path, uintptr_t offset) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    Elf64_Ehdr header;
    if (bytes.size() < sizeof header) return {};
    std::memcpy(&header, bytes.data(), sizeof header);
    const bool moved = header.e_type == ET_DYN;
    for (int i = 0; i < header.e_shnum; ++i) {
        Elf64_Shdr section, strings;
        std::memcpy(&section, bytes.data() + header.e_shoff + size_t(i) * header.e_shentsize,
                    sizeof section);
        if (section.sh_type != SHT_SYMTAB) continue;
        std::memcpy(&strings, bytes.data() + header.e_shoff + section.sh_link * header.e_shentsize,
                    sizeof strings);
        for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= section.sh_size; at += sizeof(Elf64_Sym)) {
            Elf64_Sym symbol;
            std::memcpy(&symbol, bytes.data() + section.sh_offset + at, sizeof symbol);
            if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && moved && symbol.st_value == offset)
                return bytes.data() + strings.sh_offset + symbol.st_name;
        }
    }
    return {};
}

}  // namespace

std::string symbol_name(const void* function) {
    Dl_info info;
    if (!dladdr(function, &info) || !info.dli_fname) return "a kernel";
    std::string mangled;
    if (info.dli_sname && info.dli_saddr == function)
        mangled = info.dli_sname;
    else
        mangled = from_file(info.dli_fname, reinterpret_cast<uintptr_t>(function) -
                                                reinterpret_cast<uintptr_t>(info.dli_fbase));
    if (mangled.empty()) return "a kernel";
    int status = 0;
    char* plain = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    std::string name = status == 0 ? plain : mangled;
    std::free(plain);
    const std::string anonymous = "(anonymous namespace)::";
    for (size_t at; (at = name.find(anonymous)) != std::string::npos;)
        name.erase(at, anonymous.size());
    return name.substr(0, name.find('('));
}

}  // namespace emulator
