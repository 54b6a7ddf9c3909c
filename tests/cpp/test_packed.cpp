// The packed cache: an image is used only when every byte of it is what was written, and then gives
// the same actions; files appear whole or not at all, whatever ends their writer.
#include <dirent.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>

#include "check.h"
#include "isas.h"
#include "runtime/hash.h"
#include "runtime/packed_image.h"
#include "runtime/partial_file.h"
#include "runtime/threads.h"
#include "runtime/weight_store.h"
#include "tiny_model.h"

using namespace smolvla;
using Status = PackedImage::Status;

namespace {

std::string folder;  // of this run, empty at the start
const PackedKey kKey{"a layout", "float32", "a bundle", "a configuration"};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

std::set<std::string> names() {
    std::set<std::string> result;
    DIR* listing = opendir(folder.c_str());
    while (const dirent* entry = readdir(listing))
        if (entry->d_name[0] != '.') result.insert(entry->d_name);
    closedir(listing);
    return result;
}

// The specification's text step by step, byte by byte, on arrays; for comparison alone.
uint64_t plain_xxh64(const std::vector<uint8_t>& data, uint64_t seed) {
    const uint64_t p1 = 11400714785074694791u, p2 = 14029467366897019727u,
                   p3 = 1609587929392839161u, p4 = 9650029242287828579u, p5 = 2870177450012600261u;
    const auto rotl = [](uint64_t x, int r) { return (x << r) | (x >> (64 - r)); };
    const auto number = [&](size_t at, int bytes) {
        uint64_t value = 0;
        for (int i = 0; i < bytes; ++i) value |= uint64_t{data[at + size_t(i)]} << (8 * i);
        return value;
    };
    const auto round = [&](uint64_t accumulator, uint64_t lane) {
        accumulator = accumulator + lane * p2;
        accumulator = rotl(accumulator, 31);
        return accumulator * p1;
    };
    size_t at = 0;
    uint64_t acc;
    if (data.size() < 32) {
        acc = seed + p5;
    } else {
        uint64_t lanes[4] = {seed + p1 + p2, seed + p2, seed, seed - p1};
        for (; at + 32 <= data.size(); at += 32)
            for (size_t i = 0; i < 4; ++i) lanes[i] = round(lanes[i], number(at + 8 * i, 8));
        acc = rotl(lanes[0], 1) + rotl(lanes[1], 7) + rotl(lanes[2], 12) + rotl(lanes[3], 18);
        for (uint64_t lane : lanes) acc = (acc ^ round(0, lane)) * p1 + p4;
    }
    acc += data.size();
    for (; at + 8 <= data.size(); at += 8) acc = rotl(acc ^ round(0, number(at, 8)), 27) * p1 + p4;
    if (at + 4 <= data.size()) {
        acc = rotl(acc ^ (number(at, 4) * p1), 23) * p2 + p3;
        at += 4;
    }
    for (; at < data.size(); ++at) acc = rotl(acc ^ (data[at] * p5), 11) * p1;
    acc = (acc ^ (acc >> 33)) * p2;
    acc = (acc ^ (acc >> 29)) * p3;
    return acc ^ (acc >> 32);
}

void test_hash() {
    CHECK(xxh64("", 0) == 0xEF46DB3751D8E999u);  // published values
    CHECK(xxh64("a", 1) == 0xD24EC4F1A98C6E5Bu);
    CHECK(xxh64("abc", 3) == 0x44BC2CF5AD770999u);
    CHECK(xxh64("xxhash", 6) == 0x32DD38952C4BC720u);
    CHECK(xxh64("xxhash", 6, 20141025) == 0xB559B98D844E0635u);
    std::mt19937_64 random(1);
    std::vector<uint8_t> bytes(300);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
    for (size_t begin : {0, 1, 3})
        for (size_t size = 0; size < 200; ++size) {
            const std::vector<uint8_t> part(bytes.begin() + std::ptrdiff_t(begin),
                                            bytes.begin() + std::ptrdiff_t(begin + size));
            const uint64_t seed = random();
            CHECK(xxh64(bytes.data() + begin, size, seed) == plain_xxh64(part, seed));
        }
    std::vector<char> large((size_t{9} << 20) + 5, 'x');
    ThreadPool one(1), three(3);
    const uint64_t hash = hash_of_pieces(large.data(), large.size(), one);
    CHECK(hash_of_pieces(large.data(), large.size(), three) == hash);
    for (size_t at : {size_t{0}, size_t{4} << 20, large.size() - 1}) {
        large[at] ^= 1;
        CHECK(hash_of_pieces(large.data(), large.size(), three) != hash);
        large[at] ^= 1;
    }
    std::swap_ranges(large.begin(), large.begin() + 64, large.begin() + (4 << 20));  // equal bytes
    CHECK(hash_of_pieces(large.data(), large.size(), three) == hash);
    large[1] = 'y';
    const uint64_t first_piece = hash_of_pieces(large.data(), large.size(), one);
    large[1] = 'x', large[(4 << 20) + 1] = 'y';  // the same byte of the next piece
    CHECK(hash_of_pieces(large.data(), large.size(), one) != first_piece);
}

void test_partial_file() {
    const std::string path = folder + "/file";
    {
        PartialFile file(path);
        file.reserve(3);
        file.write("new", 3);
        CHECK(names().size() == 1 && !names().count("file"));
        file.commit();
    }
    CHECK(names() == std::set<std::string>{"file"} && read_file(path) == "new");
    {
        PartialFile file(path);
    }  // given up
    CHECK(names() == std::set<std::string>{"file"} && read_file(path) == "new");

    // kill -9 in the middle of writing: the old file stays, the next writer cleans up.
    int ready[2];
    CHECK(pipe(ready) == 0);
    const pid_t child = fork();
    if (child == 0) {
        PartialFile file(path);
        file.write("half of", 7);
        (void)!write(ready[1], "x", 1);
        for (;;) pause();
    }
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    {
        // While that writer lives, another one neither waits for it nor takes its file away.
        PartialFile other(path);
        other.write("other", 5);
        CHECK(names().size() == 3);
        other.commit();
        CHECK(names().size() == 2 && read_file(path) == "other");
    }
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    CHECK(names().size() == 2 && read_file(path) == "other");
    {
        PartialFile next(path);
        CHECK(names().size() == 2);  // its own instead of the dead one's
        next.write("next", 4);
        next.commit();
    }
    CHECK(names() == std::set<std::string>{"file"} && read_file(path) == "next");
    close(ready[0]), close(ready[1]);

    CHECK_THROWS(PartialFile(folder + "/none/file"), backend);
    CHECK_THROWS(PartialFile("/proc/file"), backend);
    CHECK_THROWS(PartialFile(path).reserve(uint64_t{1} << 60), backend);  // no disk has that
    mkdir((folder + "/taken").c_str(), 0700);
    write_file(folder + "/taken/file", "");
    CHECK_THROWS(PartialFile(folder + "/taken").commit(), backend);  // a folder of that name
    CHECK((names() == std::set<std::string>{"file", "taken"}));
    unlink((folder + "/taken/file").c_str()), rmdir((folder + "/taken").c_str());
    unlink(path.c_str());
}

void test_image() {
    const std::string path = folder + "/image.bin";
    ThreadPool pool(2);
    const auto status = [&](const PackedKey& key = kKey) {
        const PackedImage::Found found = PackedImage::open(path, key, pool);
        CHECK((found.status == Status::hit) == (found.image != nullptr));
        CHECK((found.status == Status::hit) == found.why.empty());
        return found.status;
    };
    CHECK(status() == Status::absent);
    std::string image(3 * 4096 + 64, '\0');
    for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<char>(i * 37 % 251);
    write_packed_image(path, kKey, image.data(), image.size(), 42, pool);
    {
        const PackedImage::Found found = PackedImage::open(path, kKey, pool);
        CHECK(found.status == Status::hit);
        CHECK(found.image->bytes() == image.size() && found.image->signature() == 42);
        CHECK(std::memcmp(found.image->data(), image.data(), image.size()) == 0);
        CHECK(reinterpret_cast<uintptr_t>(found.image->data()) % 64 == 0);
        unlink(path.c_str());  // replaced or removed while in use: the pages stay
        CHECK(std::memcmp(found.image->data(), image.data(), image.size()) == 0);
    }
    write_packed_image(path, kKey, image.data(), image.size(), 42, pool);
    const std::string good = read_file(path);
    CHECK(good.size() == 4096 + image.size());

    // One bit of every byte of the header, and of some of the image.
    for (size_t at = 0; at < good.size(); at += at < 4096 ? 1 : 61) {
        std::string bad = good;
        bad[at] ^= static_cast<char>(1 << at % 8);
        write_file(path, bad);
        const Status found = status();
        CHECK(found == (at >= 16 && at < 20 ? Status::stale : Status::damaged));
    }
    for (size_t size = 0; size < good.size(); size += size < 4200 ? 17 : 997) {
        write_file(path, good.substr(0, size));
        CHECK(status() == Status::damaged);
    }
    for (size_t more : {1, 64, 4096}) {
        write_file(path, good + std::string(more, '\0'));
        CHECK(status() == Status::damaged);
    }
    write_file(path, good);
    CHECK(status() == Status::hit);
    CHECK(status({"another", kKey.compute, kKey.bundle, kKey.config}) == Status::stale);
    CHECK(status({kKey.layout, "bfloat16", kKey.bundle, kKey.config}) == Status::stale);
    CHECK(status({kKey.layout, kKey.compute, "a bundle of another name", kKey.config}) ==
          Status::stale);
    CHECK(status({kKey.layout, kKey.compute, kKey.bundle, ""}) == Status::stale);
    CHECK(status({std::string(200, 'x'), kKey.compute, kKey.bundle, kKey.config}) == Status::stale);
    const PackedKey long_key{std::string(96, 'x'), "", "", ""};
    CHECK_THROWS(write_packed_image(path, long_key, "", 0, 0, pool), backend);
    CHECK(read_file(path) == good);

    unlink(path.c_str());
    CHECK(mkfifo(path.c_str(), 0600) == 0);  // must not wait for a writer
    CHECK(status() == Status::damaged);
    unlink(path.c_str());
    mkdir(path.c_str(), 0700);
    CHECK(status() == Status::damaged);
    rmdir(path.c_str());
    CHECK(names().empty());
}

void test_store() {
    const std::string path = folder + "/store.bin";
    ThreadPool pool(1);
    const auto fill = [](WeightStore& store, const char* first, const char* second, int size) {
        float* a = store.floats(5, first);
        float* b = store.floats(static_cast<size_t>(size), second);
        if (!store.filled()) a[0] = 1.0f, b[0] = 2.0f;
        return a[0] == 1.0f && b[0] == 2.0f;
    };
    WeightStore made(1 << 20, nullptr);
    CHECK(fill(made, "a", "b", 40));
    made.finish();
    made.write(path, kKey, pool);
    const std::shared_ptr<const PackedImage> image = PackedImage::open(path, kKey, pool).image;
    CHECK(image != nullptr);
    {
        WeightStore mapped(0, image);
        CHECK(mapped.filled() && fill(mapped, "a", "b", 40));
        mapped.finish();
        CHECK(mapped.used_bytes() == made.used_bytes());
        CHECK_THROWS(mapped.floats(1, "c"), checkpoint);
        const std::string first = read_file(path);
        mapped.write(path, kKey, pool);
        CHECK(read_file(path) == first);
    }
    {
        WeightStore mapped(0, image);  // the same sizes in another order: no hash finds that
        fill(mapped, "b", "a", 40);
        CHECK_THROWS(mapped.finish(), checkpoint);
    }
    {
        WeightStore mapped(0, image);
        fill(mapped, "a", "b", 41);  // as many cache lines, another size
        CHECK_THROWS(mapped.finish(), checkpoint);
    }
    {
        WeightStore mapped(0, image);
        mapped.floats(5, "a");
        CHECK_THROWS(mapped.finish(), checkpoint);
        CHECK_THROWS(mapped.allocate(~size_t{0}, "b"), checkpoint);
        CHECK_THROWS(mapped.allocate(size_t{1} << 40, "b"), checkpoint);
    }
    unlink(path.c_str());
}

std::vector<float> actions_of(Engine& e) {
    const std::vector<uint8_t> pixels(48 * 80 * 3, 77);
    const std::vector<Frame> frames = {{pixels.data(), true, 48, 80}, {}};
    const std::vector<float> state(6, 0.25f), noise(8 * 8, 0.5f);
    const int tokens[] = {3, 1, 4};
    std::vector<float> normalized(8 * 5), actions(8 * 5);
    e.predict({frames, tokens, 3, state.data(), false, kNoneKept}, flow_of(noise, 8, 3),
              normalized.data(), actions.data());
    return actions;
}

void test_engine(bool codes) {
    const ModelConfig c = tiny();
    const Weights weights(c, codes);
    const std::string path = folder + "/engine.bin";
    ThreadPool pool(2);
    std::set<std::string> layouts;
    const std::vector<std::string> isas = runnable_isas();
    for (Compute compute : {Compute::float32, Compute::bfloat16})
        for (const std::string& isa : isas) {
            const PackedKey key{packed_layout(isa, compute), compute_name(compute), "b", "c"};
            layouts.insert(key.layout);
            Engine made(c, {}, {}, weights.entries, 2, isa, compute);
            made.write_packed(path, "b", "c");
            const std::shared_ptr<const PackedImage> image =
                PackedImage::open(path, key, pool).image;
            CHECK(image != nullptr);
            if (!image) continue;
            const std::vector<float> expected = actions_of(made);
            Engine one(c, {}, {}, weights.entries, 2, isa, compute, image);
            Engine two(c, {}, {}, weights.entries, 1, isa, compute, image);
            CHECK(actions_of(one) == expected && actions_of(two) == expected);
            CHECK(one.info().weight_bytes == made.info().weight_bytes);
            const std::string written = read_file(path);
            one.write_packed(path, "b", "c");
            CHECK(read_file(path) == written);

            // Refused, not misread: another precision, another model under the same name.
            const Compute other =
                compute == Compute::float32 ? Compute::bfloat16 : Compute::float32;
            CHECK_THROWS(Engine(c, {}, {}, weights.entries, 1, isa, other, image), checkpoint);
            ModelConfig fewer = c;
            fewer.vision_layers = 1;
            CHECK_THROWS(Engine(fewer, {}, {}, weights.entries, 1, isa, compute, image),
                         checkpoint);
        }
    // Layouts differ only where memory does: pairs of bfloat16 are for bfloat16 kernels alone, and
    // there are two orders of codes on a CPU with integer products.
    CHECK(layouts.size() <= 3);
    for (const std::string& one : isas)
        for (const std::string& other : isas) {
            const cpu::CodeOrder a = cpu::choose_kernels(one).dot8->order;
            const cpu::CodeOrder b = cpu::choose_kernels(other).dot8->order;
            if (a.offset != b.offset || a.run != b.run)
                CHECK(packed_layout(one, Compute::float32) !=
                      packed_layout(other, Compute::float32));
        }
    CHECK(packed_layout("scalar", Compute::float32) == packed_layout("scalar", Compute::bfloat16));
    unlink(path.c_str());
}

}  // namespace

int main() {
    char name[] = "/tmp/smolvla_packed_XXXXXX";
    folder = mkdtemp(name) ? name : "";
    CHECK(!folder.empty());
    test_hash();
    test_partial_file();
    test_image();
    test_store();
    test_engine(false);
    test_engine(true);
    CHECK(names().empty());
    rmdir(folder.c_str());
    return report("packed");
}
