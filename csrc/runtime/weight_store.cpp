#include "runtime/weight_store.h"

#include "runtime/error.h"
#include "runtime/hash.h"

namespace smolvla {

WeightStore::WeightStore(size_t capacity_bytes, std::shared_ptr<const PackedImage> image)
    : image_(std::move(image)) {
    if (!image_) arena_.emplace(capacity_bytes);
}

void* WeightStore::allocate(size_t bytes, const std::string& what) {
    void* block;
    if (image_) {
        const size_t room = Arena::room_of(bytes);
        if (room < bytes || room > image_->bytes() - used_)
            fail(ErrorKind::checkpoint, "the packed cache ends before %s", what.c_str());
        block = const_cast<char*>(image_->data() + used_);  // the pages are read-only
        used_ += room;
    } else {
        block = arena_->allocate(bytes);
    }
    signature_ = xxh64(what.data(), what.size(), signature_ + bytes);
    return block;
}

void WeightStore::finish() const {
    if (!image_) return;
    if (used_ != image_->bytes() || signature_ != image_->signature())
        fail(ErrorKind::checkpoint,
             "the packed cache holds other weights than this program loads (%zu bytes of %zu used)",
             used_, image_->bytes());
}

void WeightStore::write(const std::string& path, const PackedKey& key, ThreadPool& pool) const {
    const char* data = image_ ? image_->data() : arena_->image();
    write_packed_image(path, key, data, used_bytes(), signature_, pool);
}

}  // namespace smolvla
