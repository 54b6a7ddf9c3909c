#include "runtime/philox.h"

#include <cmath>

namespace smolvla {
namespace {

struct Block {
    uint32_t word[4];
};

Block philox4x32_10(uint64_t counter, uint64_t seed) {
    Block c{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}};
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * c.word[0];
        const uint64_t b = uint64_t{0xCD9E8D57u} * c.word[2];
        c = {{static_cast<uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(b),
              static_cast<uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(a)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

double unit(uint32_t word) { return (word + 0.5) / 4294967296.0; }

}  // namespace

void philox_normal(uint64_t seed, size_t count, float* out) {
    for (size_t i = 0; i < count; i += 4) {
        const Block b = philox4x32_10(i / 4, seed);
        float normal[4];
        for (int pair = 0; pair < 2; ++pair) {
            const double radius = std::sqrt(-2.0 * std::log(unit(b.word[2 * pair])));
            const double angle = 2.0 * M_PI * unit(b.word[2 * pair + 1]);
            normal[2 * pair] = static_cast<float>(radius * std::cos(angle));
            normal[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
        }
        for (size_t j = 0; j < 4 && i + j < count; ++j) out[i + j] = normal[j];
    }
}

}  // namespace smolvla
