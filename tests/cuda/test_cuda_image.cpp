// Frames to pixels and pixels to patches, for the CPU's bits: both round in the same places.
#include <cstdint>

#include "cpu/image.h"
#include "guarded_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

struct Size {
    int height, width;
};

template <class Pixel>
void test_letterbox(Size from, Size to, const std::vector<Pixel>& frame) {
    const size_t count = size_t(3) * to.height * to.width;
    DeviceArray<Pixel> there(frame);  // no byte more: a read beyond it is AddressSanitizer's
    GuardedMat pixels(3 * to.height, to.width, Storage::f32), tight(1, int(count), Storage::f32);
    const bool u8 = sizeof(Pixel) == 1;
    CHECK(!letterbox({there.data(), u8, from.height, from.width}, tight.mat().data, to.height,
                     to.width, nullptr));
    CHECK(tight.guards_untouched());
    std::vector<float> want(count);
    const cpu::Letterbox cpu({frame.data(), u8, from.height, from.width}, to.height, to.width);
    for (int y = 0; y < to.height; ++y) cpu.row(y, want.data());
    CHECK(same_bits(tight.values(), want));
    if (same_bits(tight.values(), want)) return;
    std::printf("%d x %d of %zu bytes to %d x %d\n", from.width, from.height, sizeof(Pixel),
                to.width, to.height);
}

void test_letterboxes() {
    const Size sizes[] = {{1, 1},   {1, 40},  {40, 1},  {2, 3},   {48, 64},
                          {64, 48}, {64, 64}, {37, 91}, {91, 37}, {120, 160}};
    for (const Size& to : {Size{64, 64}, Size{32, 48}, Size{33, 129}, Size{1, 1}})
        for (const Size& from : sizes) {
            const size_t count = size_t(3) * from.height * from.width;
            std::vector<uint8_t> bytes(count);
            for (size_t i = 0; i < count; ++i) bytes[i] = uint8_t(i * 37 % 256);
            test_letterbox(from, to, bytes);
            test_letterbox(from, to, random_values(count, unsigned(count)));
        }
}

// Two copies of a frame of which one has a pixel that is no number: it shows where that pixel is
// looked at, and on nothing else.
void test_not_a_number() {
    const Size from{24, 32}, to{16, 16};
    std::vector<float> frame = random_values(size_t(3) * from.height * from.width, 4);
    frame[(10 * 32 + 20) * 3 + 1] = NAN;
    DeviceArray<float> there(frame);
    GuardedMat tight(1, 3 * 16 * 16, Storage::f32);
    CHECK(!letterbox({there.data(), false, 24, 32}, tight.mat().data, 16, 16, nullptr));
    std::vector<float> want(3 * 16 * 16);
    const cpu::Letterbox cpu({frame.data(), false, 24, 32}, 16, 16);
    for (int y = 0; y < to.height; ++y) cpu.row(y, want.data());
    int bad = 0;
    const std::vector<float> got = tight.values();
    for (size_t i = 0; i < got.size(); ++i) {
        CHECK(std::isnan(got[i]) == std::isnan(want[i]));
        bad += std::isnan(got[i]);
    }
    CHECK(bad > 0 && bad < 8);
}

// Of all patches, or of the numbers `ids`.
void test_patchify(Size image, int patch, Storage storage, const std::vector<int>& ids = {}) {
    const int across = image.width / patch, down = image.height / patch;
    const int count = ids.empty() ? across * down : int(ids.size());
    const std::vector<float> values = random_values(size_t(3) * image.height * image.width, 5);
    DeviceArray<float> pixels(values);
    DeviceArray<int> numbers(ids);
    GuardedMat rows(count, 3 * patch * patch, storage);
    CHECK(!patchify(pixels.data(), image.height, image.width, patch,
                    ids.empty() ? nullptr : numbers.data(), rows.mat(), nullptr));
    CHECK(rows.guards_untouched());
    std::vector<float> want;
    for (int i = 0; i < count; ++i)
        for (int c = 0; c < 3; ++c)
            for (int y = 0; y < patch; ++y)
                for (int x = 0; x < patch; ++x) {
                    const int r = ids.empty() ? i : ids[size_t(i)];
                    const int at_y = r / across * patch + y, at_x = r % across * patch + x;
                    const float v = values[(size_t(c) * image.height + at_y) * image.width + at_x];
                    want.push_back(storage == Storage::f32 ? v : as_bf16(v));
                }
    CHECK(same_bits(rows.values(), want));
}

}  // namespace

int main() {
    test_letterboxes();
    test_not_a_number();
    for (Storage storage : {Storage::f32, Storage::bf16_rows}) {
        test_patchify({64, 64}, 16, storage);
        test_patchify({35, 52}, 16, storage);  // what is beyond whole patches is left out
        test_patchify({12, 9}, 3, storage);    // rows of an odd size
        test_patchify({5, 7}, 1, storage);
        test_patchify({35, 52}, 16, storage, {5, 0, 3, 3});
        test_patchify({12, 9}, 3, storage, {11});
    }
    in_every_order([] {
        std::vector<uint8_t> bytes(3 * 37 * 91);
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(i * 37 % 256);
        test_letterbox({37, 91}, {48, 32}, bytes);
        test_patchify({12, 9}, 3, Storage::bf16_rows, {7, 2});
    });
    return report("cuda_image");
}
