// Where weights live: packed into an arena while loading, or mapped from a packed image that holds
// what the same sequence of blocks held when it was written.
//
// Every block is named by what it is. The names and sizes in their order make a signature that is
// written with the image and compared when all blocks have been taken from it, so that an image is
// never read as what it is not, even by a program that loads in another order.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "runtime/arena.h"
#include "runtime/packed_image.h"

namespace smolvla {

class WeightStore {
public:
    // With an image, `capacity_bytes` is not used.
    WeightStore(size_t capacity_bytes, std::shared_ptr<const PackedImage> image);

    // Whether blocks come with their contents, read-only; else they are zeroed and to be filled.
    bool filled() const { return image_ != nullptr; }
    // The next block, 64-byte aligned.
    void* allocate(size_t bytes, const std::string& what);
    float* floats(size_t count, const std::string& what) {
        return static_cast<float*>(allocate(count * sizeof(float), what));
    }
    size_t used_bytes() const { return image_ ? used_ : arena_->used_bytes(); }

    // All blocks have been taken. Raises a checkpoint error when an image held others.
    void finish() const;
    void write(const std::string& path, const PackedKey& key, ThreadPool& pool) const;

private:
    std::shared_ptr<const PackedImage> image_;
    std::optional<Arena> arena_;
    size_t used_ = 0;  // of the image
    uint64_t signature_ = 0;
};

}  // namespace smolvla
