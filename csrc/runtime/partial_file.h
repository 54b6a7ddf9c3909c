// A file that appears under its name when it is complete, or not at all.
//
// It is written as <name>.<random>.partial in the same folder, locked while its writer lives. An
// error removes it at once; what a killed writer left is removed by the next one, which finds it
// unlocked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace smolvla {

class PartialFile {
public:
    // All members raise a backend error naming the file and the system's reason.
    explicit PartialFile(const std::string& path);
    ~PartialFile();  // removes what was not committed
    PartialFile(const PartialFile&) = delete;
    PartialFile& operator=(const PartialFile&) = delete;

    // Asks for room at once, so that a full disk is found before gigabytes are written.
    void reserve(uint64_t bytes);
    void write(const void* data, size_t bytes);
    // Everything reaches the disk, then the name.
    void commit();

private:
    [[noreturn]] void refuse(const char* what, int error);

    const std::string path_, folder_;
    std::string partial_;
    int fd_ = -1;
};

}  // namespace smolvla
