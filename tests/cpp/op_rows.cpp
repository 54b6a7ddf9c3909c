// Operations that take each row for itself: norms, rotation of heads, copies.
#include <algorithm>

#include "operations.h"

namespace smolvla {
namespace {

constexpr float kNormEps = 1e-5f;

std::string name(const char* operation, int rows, int cols, Storage y) {
    return std::string(operation) + " " + std::to_string(rows) + " x " + std::to_string(cols) +
           ", storage " + std::to_string(int(y));
}

// A row's sums are made in 16 lanes of cols / 16 terms, and joined in 4 steps.
std::vector<Bound> normed(const Mat& x, const float* weight, const float* bias, bool rms,
                          Storage y) {
    std::vector<Bound> bounds;
    for (int r = 0; r < x.rows; ++r) {
        double mean = 0, square = 0;
        for (int c = 0; c < x.cols && !rms; ++c) mean += double(x.row(r)[c]) / x.cols;
        for (int c = 0; c < x.cols; ++c) square += std::pow(x.row(r)[c] - mean, 2) / x.cols;
        const double root = std::sqrt(square + kNormEps);
        double size = 0;
        for (int c = 0; c < x.cols; ++c) size = std::max(size, std::fabs(double(x.row(r)[c])));
        for (int c = 0; c < x.cols; ++c) {
            const double value = (x.row(r)[c] - mean) / root * weight[c] + (rms ? 0 : bias[c]);
            const double scale = (size + std::fabs(mean)) / root * std::fabs(weight[c]);
            const Bound b{value, (x.cols / 16 + 16) * kEps * (scale + std::fabs(value)) * 1.01};
            bounds.push_back(b.stored(y));
        }
    }
    return bounds;
}

void check_norms(Judge& judge, int rows, int cols, Storage y_storage) {
    const LooseMat x(rows, cols, 1u, Storage::f32, 3.0f), weight(1, cols, 2u), bias(1, cols, 3u);
    const float *w = weight.mat.row(0), *shift = bias.mat.row(0);
    for (bool rms : {false, true}) {
        const std::string what = name(rms ? "rms_norm" : "layer_norm", rows, cols, y_storage);
        judge.run(what, Compute::float32, normed(x.mat, w, shift, rms, y_storage), [&](Backend& b) {
            LooseMat y(rows, cols, y_storage);
            if (rms)
                b.rms_norm(x.mat, w, kNormEps, y.mat);
            else
                b.layer_norm(x.mat, w, shift, kNormEps, y.mat);
            judge.require(y.margins_untouched(), what + ": writes beside its result");
            return y.values();
        });
    }
}

void check_copy(Judge& judge, int rows, int cols, Storage y_storage) {
    const LooseMat x(rows, cols, 4u);
    const float scale = 0.7f;
    std::vector<Bound> bounds;
    for (float v : x.values()) {
        const Bound product{double(v) * scale, kEps * std::fabs(double(v) * scale)};
        bounds.push_back(product.stored(y_storage));
    }
    const std::string what = name("copy", rows, cols, y_storage);
    judge.run(what, Compute::float32, bounds, [&](Backend& b) {
        LooseMat y(rows, cols, y_storage);
        b.copy(x.mat, scale, y.mat);
        judge.require(y.margins_untouched(), what + ": writes beside its result");
        return y.values();
    });
}

void check_rope(Judge& judge, int rows, int heads, int dim) {
    constexpr int kFirst = 3;
    const int half = dim / 2, cols = heads * dim;
    const LooseMat x(rows, cols, 5u);
    LooseMat cosine(rows + kFirst, half), sine(rows + kFirst, half);
    for (int r = 0; r < rows + kFirst; ++r)
        for (int i = 0; i < half; ++i) {
            cosine.mat.row(r)[i] = std::cos(float(r) / float(i + 1));
            sine.mat.row(r)[i] = std::sin(float(r) / float(i + 1));
        }
    std::vector<Bound> bounds;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) {
            const bool second = c % dim >= half;
            const int i = c % dim % half, start = c / dim * dim;
            const double a = x.mat.row(r)[start + i], b = x.mat.row(r)[start + half + i];
            const double co = cosine.mat.row(kFirst + r)[i], si = sine.mat.row(kFirst + r)[i];
            bounds.push_back({second ? b * co + a * si : a * co - b * si,
                              2 * kEps * 1.01 * (std::fabs(a) + std::fabs(b))});
        }
    const std::string what = name("rope", rows, cols, Storage::f32);
    judge.run(what, Compute::float32, bounds, [&](Backend& b) {
        LooseMat y(rows, cols, 5u);
        b.rope(y.mat, heads, cosine.mat, sine.mat, &kFirst);
        judge.require(y.margins_untouched(), what + ": writes beside its result");
        return y.values();
    });
}

}  // namespace

void check_rows(Judge& judge) {
    for (int rows : kRows) {
        if (judge.few && rows != 7) continue;
        for (Storage y : {Storage::f32, Storage::rounded, Storage::bf16})
            for (int cols : {1, 15, 33, 48}) {
                check_norms(judge, rows, cols, y);
                check_copy(judge, rows, cols, y);
            }
        check_rope(judge, rows, 3, 6);
        check_rope(judge, rows, 2, 34);
    }
    if (judge.few) return;
    for (int cols : {720, 768, 960, 961}) check_norms(judge, 51, cols, Storage::f32);
    check_norms(judge, 51, 961, Storage::bf16);
    check_rope(judge, 113, 15, 64);
}

}  // namespace smolvla
