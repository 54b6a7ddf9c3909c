// Backend::linear: y = activation(x W^T + bias) * scale + residual.
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "activation_bound.h"
#include "operations.h"

namespace smolvla {
namespace {

struct Case {
    int rows, in, out;
    bool bf16_weights = false;
    Compute compute = Compute::float32;
    Storage x = Storage::f32, y = Storage::f32;
    Activation activation = Activation::none;
    bool gated = false, bias = false, residual = false;
    float scale = 1.0f;
    bool column_scale = false;

    std::string name() const {
        char text[160];
        std::snprintf(text, sizeof text,
                      "linear %d x %d -> %d, %s weights, storages %d and %d, activation %d%s%s%s%s",
                      rows, in, out, bf16_weights ? "bfloat16" : "float32", int(x), int(y),
                      int(activation), gated ? ", gated" : "", bias ? ", bias" : "",
                      residual ? ", residual" : "", column_scale ? ", column scales" : "");
        return text;
    }
};

// One or two weights [out, in] in a file, and their values.
class WeightFile {
public:
    explicit WeightFile(const Case& c)
        : path_("/tmp/smolvla_linear_" + std::to_string(getpid())),
          values(
              randoms(size_t(c.gated ? 2 : 1) * c.out * c.in, 5, 1.0f / std::sqrt(float(c.in)))) {
        const DType dtype = c.bf16_weights ? DType::bf16 : DType::f32;
        const int skip = c.bf16_weights ? 2 : 0;  // the upper half of a float is its bfloat16
        std::ofstream file(path_, std::ios::binary);
        for (float& v : values) {
            if (c.bf16_weights) v = to_bf16(v);
            file.write(reinterpret_cast<const char*>(&v) + skip, 4 - skip);
        }
        const uint64_t bytes = uint64_t(c.out) * c.in * (4 - skip);
        for (int part = 0; part < (c.gated ? 2 : 1); ++part) {
            names.push_back(std::to_string(part));
            outs.push_back(c.out);
            entries.push_back({names.back(), dtype, {c.out, c.in}, path_, part * bytes, bytes});
        }
    }
    ~WeightFile() { unlink(path_.c_str()); }

private:
    const std::string path_;

public:
    std::vector<float> values;
    std::vector<TensorEntry> entries;
    std::vector<std::string> names;
    std::vector<int> outs;
};

std::vector<Bound> expected(const Case& c, const Mat& x, const WeightFile& w, const Mat& bias,
                            const Mat& residual, const Mat& columns) {
    const bool rounds = c.bf16_weights && c.compute == Compute::bfloat16;
    std::vector<Bound> bounds(size_t(c.rows) * c.out, {NAN, 0});
    for (int r = 0; r < c.rows; ++r) {
        if (!sampled(r, c.rows)) continue;
        for (int column = 0; column < c.out; ++column) {
            Bound part[2];
            for (int p = 0; p < (c.gated ? 2 : 1); ++p) {
                const float* weight = &w.values[(size_t(p) * c.out + column) * c.in];
                double sum = 0, size = 0;
                for (int k = 0; k < c.in; ++k) {
                    const float operand = rounds ? to_bf16(x.value(r, k)) : x.value(r, k);
                    const double product = double(operand) * weight[k];
                    sum += product;
                    size += std::fabs(product);
                }
                part[p] = dot(sum, size, c.in);
                if (c.bias) part[p].value += bias.value(0, column);
                part[p].allowed += kEps * std::fabs(part[p].value);
            }
            const bool coarse = c.y != Storage::f32;
            Bound b = activate(part[0], c.gated ? Activation::silu : c.activation, coarse);
            if (c.gated) {
                const Bound up = part[1];
                b = {b.value * up.value, b.allowed * (std::fabs(up.value) + up.allowed) +
                                             std::fabs(b.value) * up.allowed};
                b.allowed += kEps * std::fabs(b.value);
            }
            b = {b.value * c.scale, (b.allowed + kEps * std::fabs(b.value)) * c.scale};
            if (c.column_scale) {
                const float factor = columns.value(0, column);
                b = {b.value * factor, (b.allowed + kEps * std::fabs(b.value)) * std::fabs(factor)};
            }
            if (c.residual) b.value += residual.value(r, column);
            bounds[size_t(r) * c.out + column] = b.stored(c.y);
        }
    }
    return bounds;
}

void check(Judge& judge, const Case& c) {
    const WeightFile w(c);
    const LooseMat x(c.rows, c.in, unsigned(c.rows + c.in), c.x);
    const LooseMat residual(c.rows, c.out, 3u);
    // The kernels read biases in whole panels; gated ones have their own, packed, in the weight.
    const LooseMat bias(1, (c.out + 31) / 32 * 32, 4u);
    const LooseMat columns(1, (c.out + 31) / 32 * 32, 8u);
    judge.run(c.name(), c.compute, expected(c, x.mat, w, bias.mat, residual.mat, columns.mat),
              [&](Backend& b) {
                  const TensorSource source(w.entries);
                  const Linear* linear = b.load_linear(source, w.names, {}, c.in, w.outs, c.gated);
                  LooseMat y(c.rows, c.out, c.y);
                  LinearOptions o;
                  o.bias = c.bias ? bias.mat.data : nullptr;
                  o.activation = c.activation;
                  if (c.residual) o.residual = residual.mat;
                  o.scale = c.scale;
                  if (c.column_scale) o.column_scale = columns.mat.data;
                  b.linear(x.mat, linear, y.mat, o);
                  judge.require(y.margins_untouched(), c.name() + ": writes beside its result");
                  return y.values();
              });
}

// Every dtype, compute and storage at one size.
void check_storages(Judge& judge, int rows, int in, int out) {
    check(judge, {rows, in, out});
    check(judge, {rows, in, out, true});
    for (Storage x : {Storage::f32, Storage::rounded, Storage::bf16})
        check(judge, {rows, in, out, true, Compute::bfloat16, x, x});
    check(judge, {rows, in, out, false, Compute::bfloat16, Storage::bf16});  // widens x
}

}  // namespace

void check_linear(Judge& judge) {
    for (int rows : kRows) {
        if (judge.few && rows != 7) continue;
        check_storages(judge, rows, 31, 33);
        if (rows < 1024) check_storages(judge, rows, 257, 45);  // a chain and one product more
    }
    // SmolVLA's depths at their rows; a panel is as good as all of them.
    const int shapes[][3] = {{50, 720, 64},   {50, 2048, 45}, {113, 960, 72},
                             {113, 2560, 33}, {64, 768, 64},  {64, 3072, 40}};
    for (const auto& s : shapes) {
        if (judge.few) break;
        check(judge, {s[0], s[1], s[2]});
        check(judge, {s[0], s[1], s[2], true});
        check(judge, {s[0], s[1], s[2], true, Compute::bfloat16, Storage::bf16});
    }
    for (int rows : {7, 50})
        for (Storage y : {Storage::f32, Storage::rounded, Storage::bf16})
            for (Activation a : {Activation::none, Activation::gelu_tanh, Activation::silu}) {
                const bool narrow = y != Storage::f32;
                Case c{rows, 96, 47, narrow, narrow ? Compute::bfloat16 : Compute::float32, y, y};
                c.activation = a;
                c.bias = c.residual = true;
                c.scale = 0.5f;
                check(judge, c);
                c.column_scale = true;
                check(judge, c);
                c.bias = c.residual = c.column_scale = false;
                c.gated = a == Activation::none;
                if (c.gated) check(judge, c);
            }
}

}  // namespace smolvla
