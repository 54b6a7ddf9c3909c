#include "runtime/packed_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/error.h"
#include "runtime/hash.h"
#include "runtime/partial_file.h"
#include "runtime/threads.h"

namespace smolvla {
namespace {

constexpr char kMagic[16] = "smolvla-packed\n";
constexpr uint32_t kVersion = 1;
constexpr size_t kField = 96;

// Fixed, so that the image behind it is aligned and a header needs no parsing.
struct Header {
    char magic[16];
    uint32_t version, header_bytes;
    char layout[kField], compute[kField], bundle[kField], config[kField];
    uint64_t image_bytes, image_hash, signature;
    char unused[4096 - 24 - 4 * kField - 4 * 8];
    uint64_t header_hash;  // of all above
};
static_assert(sizeof(Header) == 4096 && offsetof(Header, header_hash) == 4088, "packed by hand");

uint64_t hash_of(const Header& h) { return xxh64(&h, offsetof(Header, header_hash)); }

struct Field {
    char* text;
    const std::string& value;
    const char* name;
};

// The four fields of a header beside what they ought to be.
template <class Check>
void each_field(Header& h, const PackedKey& key, const Check& check) {
    for (const Field& field :
         {Field{h.layout, key.layout, "layout"}, Field{h.compute, key.compute, "precision"},
          Field{h.bundle, key.bundle, "bundle"}, Field{h.config, key.config, "configuration"}})
        check(field);
}

struct Descriptor {
    ~Descriptor() {
        if (fd >= 0) close(fd);
    }
    int fd;
};

bool read_header(int fd, Header* header) {
    size_t done = 0;
    while (done < sizeof *header) {
        const ssize_t got = pread(fd, reinterpret_cast<char*>(header) + done, sizeof *header - done,
                                  static_cast<off_t>(done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        done += static_cast<size_t>(got);
    }
    return true;
}

}  // namespace

PackedImage::Found PackedImage::open(const std::string& path, const PackedKey& key,
                                     ThreadPool& pool) {
    const auto damaged = [](std::string why) -> Found {
        return {Status::damaged, std::move(why), nullptr};
    };
    const auto stale = [](std::string why) -> Found {
        return {Status::stale, std::move(why), nullptr};
    };
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    struct stat st;
    if (file.fd < 0 || fstat(file.fd, &st) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return {Status::absent, "there is none", nullptr};
        return damaged(std::string("it cannot be opened: ") + std::strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) return damaged("it is no regular file");
    const uint64_t size = static_cast<uint64_t>(st.st_size);
    Header header;
    if (size < sizeof header || !read_header(file.fd, &header))
        return damaged("expected a header of 4096 bytes, got " + std::to_string(size) + " bytes");
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
        return damaged("it is no packed cache");
    if (header.version != kVersion)
        return stale("its format version is " + std::to_string(header.version) + ", expected " +
                     std::to_string(kVersion));
    if (header.header_hash != hash_of(header)) return damaged("its header does not match its hash");
    std::string differs;
    each_field(header, key, [&](const Field& f) {
        if (strnlen(f.text, kField) != f.value.size() ||
            std::memcmp(f.text, f.value.data(), f.value.size()) != 0)
            differs += (differs.empty() ? "" : " and ") + std::string(f.name);
    });
    if (!differs.empty()) return stale("it is of another " + differs);
    if (header.header_bytes != sizeof header || header.image_bytes != size - sizeof header)
        return damaged("expected an image of " + std::to_string(header.image_bytes) +
                       " bytes, got " + std::to_string(size - sizeof header));

    void* base = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (base == MAP_FAILED)
        return damaged(std::string("it cannot be mapped: ") + std::strerror(errno));
    std::shared_ptr<const PackedImage> image(new PackedImage(base, size, header.signature, key));
    if (hash_of_pieces(image->data(), image->bytes(), pool) != header.image_hash)
        return damaged("its image does not match its hash");
    return {Status::hit, "", std::move(image)};
}

PackedImage::~PackedImage() { munmap(base_, file_bytes_); }

const char* PackedImage::data() const { return static_cast<const char*>(base_) + sizeof(Header); }

size_t PackedImage::bytes() const { return file_bytes_ - sizeof(Header); }

void write_packed_image(const std::string& path, const PackedKey& key, const char* image,
                        size_t bytes, uint64_t signature, ThreadPool& pool) {
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.header_bytes = sizeof header;
    each_field(header, key, [](const Field& f) {
        if (f.value.size() >= kField)
            fail(ErrorKind::backend, "%s: expected at most %zu characters, got %zu", f.name,
                 kField - 1, f.value.size());
        std::memcpy(f.text, f.value.data(), f.value.size());
    });
    header.image_bytes = bytes;
    header.image_hash = hash_of_pieces(image, bytes, pool);
    header.signature = signature;
    header.header_hash = hash_of(header);

    PartialFile file(path);
    file.reserve(sizeof header + bytes);
    file.write(&header, sizeof header);
    file.write(image, bytes);
    file.commit();
}

}  // namespace smolvla
