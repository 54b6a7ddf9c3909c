// The packed cache on disk: the weights as they lie in memory after packing, ready to be mapped.
//
//     4096 bytes   header: what the image is of and for, its size and hash (packed_image.cpp)
//     the rest     the image: every block at the offset that it has in memory
//
// A file is used only if every byte of it is as it was written and it is of this bundle, for this
// layout and this code; otherwise the weights are packed again. It is mapped, never copied: two
// policies of one bundle share its pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace smolvla {

class ThreadPool;

// What an image must be of, at most 95 characters each.
struct PackedKey {
    std::string layout;   // of packed_layout()
    std::string compute;  // precision
    std::string bundle;   // digest
    std::string config;   // what else the caller's weights depend on
};

class PackedImage {
public:
    enum class Status { hit, absent, stale, damaged };
    struct Found {
        Status status;
        std::string why;                           // for a person; empty for a hit
        std::shared_ptr<const PackedImage> image;  // of a hit
    };
    // Never throws for what a file holds. Reads all of it, with `pool`.
    static Found open(const std::string& path, const PackedKey& key, ThreadPool& pool);

    ~PackedImage();
    PackedImage(const PackedImage&) = delete;
    PackedImage& operator=(const PackedImage&) = delete;

    const char* data() const;  // 64-byte aligned
    size_t bytes() const;
    uint64_t signature() const { return signature_; }
    const PackedKey& key() const { return key_; }

private:
    PackedImage(void* base, size_t file_bytes, uint64_t signature, PackedKey key)
        : base_(base), file_bytes_(file_bytes), signature_(signature), key_(std::move(key)) {}

    void* const base_;
    const size_t file_bytes_;
    const uint64_t signature_;
    const PackedKey key_;
};

// Writes beside `path` and renames: a file of that name is a whole image at every moment, and of
// two writers the last one wins. `signature` names the sequence of blocks. Raises a backend error
// (no room, no permission, no such folder), after which no part of the new file is left.
void write_packed_image(const std::string& path, const PackedKey& key, const char* image,
                        size_t bytes, uint64_t signature, ThreadPool& pool);

}  // namespace smolvla
