#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "check.h"
#include "runtime/tensor_source.h"

using namespace smolvla;

int main() {
    const std::string path = "/tmp/smolvla_tensor_source_" + std::to_string(getpid());
    {
        std::ofstream file(path, std::ios::binary);
        const float values[4] = {1.5f, -2.0f, 0.25f, 3e30f};
        const uint16_t halves[4] = {0x3f80, 0xc000, 0x0001, 0x7f80};  // bf16: 1, -2, tiny, inf
        const uint16_t f16[4] = {0x3c00, 0xc000, 0x0001, 0x7c00};     // 1, -2, 2^-24, inf
        file.write(reinterpret_cast<const char*>(values), 16);
        file.write(reinterpret_cast<const char*>(halves), 8);
        file.write(reinterpret_cast<const char*>(f16), 8);
    }
    const auto entry = [&](const char* name, DType t, std::vector<int64_t> shape, uint64_t at,
                           uint64_t bytes) { return TensorEntry{name, t, shape, path, at, bytes}; };
    {
        TensorSource source({entry("f", DType::f32, {2, 2}, 0, 16),
                             entry("b", DType::bf16, {4}, 16, 8),
                             entry("h", DType::f16, {4}, 24, 8)});
        float out[4];
        source.read_f32(source.expect("f", {2, 2}), 1, 3, out);
        CHECK(out[0] == -2.0f && out[2] == 3e30f);
        source.read_f32(source.find("b"), 0, 4, out);
        CHECK(out[0] == 1.0f && out[1] == -2.0f && out[2] > 0 && std::isinf(out[3]));
        source.read_f32(source.find("h"), 0, 4, out);
        CHECK(out[0] == 1.0f && out[1] == -2.0f && out[2] == 0x1p-24f && std::isinf(out[3]));
        float mapped;
        std::memcpy(&mapped, source.map(source.find("f")), 4);
        CHECK(mapped == 1.5f);
        CHECK_THROWS(source.find("missing"), checkpoint);
        CHECK_THROWS(source.expect("f", {4}), checkpoint);
        CHECK_THROWS(source.read_f32(source.find("f"), 2, 3, out), checkpoint);
    }
    using Entries = std::vector<TensorEntry>;
    const int64_t huge = std::numeric_limits<int64_t>::max();
    const Entries bad[] = {
        {entry("past end", DType::f32, {4}, 20, 16)},
        {entry("offset wraps", DType::f32, {4}, std::numeric_limits<uint64_t>::max() - 7, 16)},
        {entry("shape and bytes differ", DType::f32, {3}, 0, 16)},
        {entry("product overflows", DType::f32, {huge, 8}, 0, 16)},
        {entry("bytes overflow", DType::f32, {huge}, 0, 16)},
        {entry("negative", DType::f32, {-4}, 0, 16)},
        {entry("twice", DType::f32, {4}, 0, 16), entry("twice", DType::f32, {4}, 0, 16)},
        {TensorEntry{"no file", DType::f32, {4}, path + ".none", 0, 16}},
        {TensorEntry{"a directory", DType::f32, {4}, "/tmp", 0, 16}},
    };
    const int free_descriptor = dup(0);
    close(free_descriptor);
    for (const Entries& entries : bad) CHECK_THROWS(TensorSource(entries), checkpoint);
    const int still_free = dup(0);
    CHECK(still_free == free_descriptor);  // a refusal leaves no file open
    close(still_free);
    const std::string pipe = path + ".pipe";
    CHECK(mkfifo(pipe.c_str(), 0600) == 0);  // must not wait for a writer
    CHECK_THROWS(TensorSource({TensorEntry{"a pipe", DType::f32, {4}, pipe, 0, 16}}), checkpoint);
    unlink(pipe.c_str());
    CHECK_THROWS(parse_dtype("I64"), checkpoint);
    unlink(path.c_str());
    return report("tensor_source");
}
