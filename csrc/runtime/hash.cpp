#include "runtime/hash.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/threads.h"

namespace smolvla {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lanes are read as they lie");

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F,
                   kPrime3 = 0x165667B19E3779F9, kPrime4 = 0x85EBCA77C2B2AE63,
                   kPrime5 = 0x27D4EB2F165667C5;
constexpr size_t kPiece = size_t{4} << 20;

uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

template <class T>
uint64_t read(const char* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

uint64_t round(uint64_t lane, uint64_t input) {
    return rotate(lane + input * kPrime2, 31) * kPrime1;
}

uint64_t merge(uint64_t hash, uint64_t lane) { return (hash ^ round(0, lane)) * kPrime1 + kPrime4; }

}  // namespace

uint64_t xxh64(const void* data, size_t bytes, uint64_t seed) {
    const char* p = static_cast<const char*>(data);
    const char* const end = p + bytes;
    uint64_t hash = seed + kPrime5;
    if (bytes >= 32) {
        uint64_t a = seed + kPrime1 + kPrime2, b = seed + kPrime2, c = seed, d = seed - kPrime1;
        for (; end - p >= 32; p += 32) {
            a = round(a, read<uint64_t>(p));
            b = round(b, read<uint64_t>(p + 8));
            c = round(c, read<uint64_t>(p + 16));
            d = round(d, read<uint64_t>(p + 24));
        }
        hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
        for (uint64_t lane : {a, b, c, d}) hash = merge(hash, lane);
    }
    hash += bytes;
    for (; end - p >= 8; p += 8)
        hash = rotate(hash ^ round(0, read<uint64_t>(p)), 27) * kPrime1 + kPrime4;
    if (end - p >= 4) {
        hash = rotate(hash ^ read<uint32_t>(p) * kPrime1, 23) * kPrime2 + kPrime3;
        p += 4;
    }
    for (; p < end; ++p) hash = rotate(hash ^ read<uint8_t>(p) * kPrime5, 11) * kPrime1;
    hash = (hash ^ hash >> 33) * kPrime2;
    hash = (hash ^ hash >> 29) * kPrime3;
    return hash ^ hash >> 32;
}

uint64_t hash_of_pieces(const void* data, size_t bytes, ThreadPool& pool) {
    const size_t count = (bytes + kPiece - 1) / kPiece;
    std::vector<uint64_t> pieces(count);
    pool.run(static_cast<int>(count), [&](int i, int) {
        const size_t from = static_cast<size_t>(i) * kPiece;
        pieces[static_cast<size_t>(i)] =
            xxh64(static_cast<const char*>(data) + from, std::min(kPiece, bytes - from),
                  static_cast<uint64_t>(i));
    });
    return xxh64(pieces.data(), pieces.size() * sizeof(uint64_t), bytes);
}

}  // namespace smolvla
