// Backend::linear of weights of integer codes: the rows become integers, the products are exact.
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "activation_bound.h"
#include "operations.h"

namespace smolvla {
namespace {

struct Case {
    int rows, in, out;
    int group = 0;  // of int4; 0: int8
    Storage x = Storage::f32, y = Storage::f32;
    Activation activation = Activation::none;
    bool gated = false, bias = false, residual = false;
    float scale = 1.0f;
    bool column_scale = false;

    std::string name() const {
        char text[160];
        std::snprintf(text, sizeof text,
                      "codes %d x %d -> %d, group %d, storages %d and %d, activation %d%s%s%s%s",
                      rows, in, out, group, int(x), int(y), int(activation), gated ? ", gated" : "",
                      bias ? ", bias" : "", residual ? ", residual" : "",
                      column_scale ? ", column scales" : "");
        return text;
    }
    int parts() const { return gated ? 2 : 1; }
    int groups() const { return group ? (in + group - 1) / group : 1; }
};

// One or two weights of codes [out, in] in a file, and their values.
class CodeFile {
public:
    explicit CodeFile(const Case& c) : path_("/tmp/smolvla_codes_" + std::to_string(getpid())) {
        std::mt19937 random(static_cast<unsigned>(c.in * 7 + c.out));
        const int most = c.group ? 7 : 127;
        std::ofstream file(path_, std::ios::binary);
        uint64_t at = 0;
        const auto put = [&](const std::string& name, DType dtype, std::vector<int64_t> shape,
                             const std::string& bytes) {
            file << bytes;
            entries.push_back({name, dtype, std::move(shape), path_, at, bytes.size()});
            at += bytes.size();
        };
        for (int part = 0; part < c.parts(); ++part) {
            const std::string name = std::to_string(part);
            names.push_back(name);
            outs.push_back(c.out);
            std::string packed, scales;
            const int pitch = c.group ? (c.in + 1) / 2 : c.in;
            for (int row = 0; row < c.out; ++row) {
                std::string bytes(size_t(pitch), 0);
                for (int k = 0; k < c.in; ++k) {
                    int code = static_cast<int>(random() % unsigned(2 * most + 1)) - most;
                    if (c.group && random() % 16 == 0) code = -8;
                    codes.push_back(code);
                    if (c.group)
                        bytes[size_t(k / 2)] |= static_cast<char>((code + 8) << (k % 2 * 4));
                    else
                        bytes[size_t(k)] = static_cast<char>(code);
                }
                packed += bytes;
                for (int g = 0; g < c.groups(); ++g) {
                    // A float16 of 2^-9 to 2^-8, which float32 holds too.
                    const uint16_t half = static_cast<uint16_t>(6 << 10 | random() % 1024);
                    values.push_back(f16_to_f32(half));
                    if (c.group)
                        scales.append(reinterpret_cast<const char*>(&half), 2);
                    else
                        scales.append(reinterpret_cast<const char*>(&values.back()), 4);
                }
            }
            if (c.group) {
                put(name, DType::u8, {c.out, pitch}, packed);
                put(name + ".scale", DType::f16, {c.out, c.groups()}, scales);
            } else {
                put(name, DType::i8, {c.out, c.in}, packed);
                put(name + ".scale", DType::f32, {c.out}, scales);
            }
        }
    }
    ~CodeFile() { unlink(path_.c_str()); }

private:
    const std::string path_;

public:
    std::vector<int> codes;     // [parts][out][in]
    std::vector<float> values;  // scales [parts][out][groups]
    std::vector<TensorEntry> entries;
    std::vector<std::string> names;
    std::vector<int> outs;
};

std::vector<Bound> expected(const Case& c, const Mat& x, const CodeFile& w, const Mat& bias,
                            const Mat& residual, const Mat& columns) {
    std::vector<Bound> bounds(size_t(c.rows) * c.out, {NAN, 0});
    for (int r = 0; r < c.rows; ++r) {
        if (!sampled(r, c.rows)) continue;
        float most = 0;
        for (int k = 0; k < c.in; ++k) most = std::max(most, std::fabs(x.value(r, k)));
        std::vector<int> row;
        for (int k = 0; k < c.in; ++k)
            row.push_back(static_cast<int>(std::nearbyintf(x.value(r, k) * (127.0f / most))));
        for (int column = 0; column < c.out; ++column) {
            Bound part[2];
            for (int p = 0; p < c.parts(); ++p) {
                const size_t at = size_t(p) * c.out + column;
                double sum = 0, size = 0;
                for (int g = 0; g < c.groups(); ++g) {
                    int64_t whole = 0;
                    const int last = c.group ? std::min(c.in, c.group * (g + 1)) : c.in;
                    for (int k = c.group * g; k < last; ++k)
                        whole += row[size_t(k)] * w.codes[at * c.in + k];
                    const double product =
                        double(whole) * w.values[at * c.groups() + g] * most / 127;
                    sum += product;
                    size += std::fabs(product);
                }
                // A rounding of the integer to float32 and one a group; the row's scale: two.
                part[p] = {sum, (c.groups() + 4) * kEps * 1.01 * size};
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
    const CodeFile w(c);
    const LooseMat x(c.rows, c.in, unsigned(c.rows + c.in), c.x);
    const LooseMat residual(c.rows, c.out, 3u);
    const LooseMat bias(1, (c.out + 31) / 32 * 32, 4u);
    const LooseMat columns(1, (c.out + 31) / 32 * 32, 8u);
    const Compute compute = c.x == Storage::f32 ? Compute::float32 : Compute::bfloat16;
    judge.run(c.name(), compute, expected(c, x.mat, w, bias.mat, residual.mat, columns.mat),
              [&](Backend& b) {
                  const TensorSource source(w.entries);
                  b.make_mat(c.rows, c.in);  // tells how many rows there will be
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

// A norm that writes integers for its reader: the bits of a norm to floats, rounded afterwards.
void check_norm(Judge& judge, int rows, int width) {
    const Case c{rows, width, 40};
    const CodeFile w(c);
    const LooseMat x(rows, width, 5u), weight(1, width, 6u);
    const std::string name =
        "norm to integers " + std::to_string(rows) + " x " + std::to_string(width);
    const std::vector<Bound> unknown(size_t(rows) * c.out, {NAN, 0});
    judge.run(name, Compute::bfloat16, unknown, [&](Backend& b) {
        const TensorSource source(w.entries);
        const Mat floats = b.make_mat(rows, width), room = b.make_activation(rows, width);
        const Linear* linear = b.load_linear(source, w.names, {}, width, w.outs, false);
        const Mat integers = b.operand(room, linear);
        judge.require(integers.storage == Storage::i8 && integers.data == room.data,
                      name + ": not the activation's memory as integers");
        LooseMat once(rows, c.out, Storage::f32), twice(rows, c.out, Storage::f32);
        b.rms_norm(x.mat, weight.mat.data, 1e-5f, integers);
        b.linear(integers, linear, once.mat, {});
        b.rms_norm(x.mat, weight.mat.data, 1e-5f, floats);
        b.linear(floats, linear, twice.mat, {});
        judge.require(once.values() == twice.values(), name + ": not what two passes give");
        return once.values();
    });
}

}  // namespace

void check_codes(Judge& judge) {
    for (int rows : {1, 7, 50})
        for (int width : {31, 257, 720}) check_norm(judge, rows, width);
    for (int rows : kRows) {
        if (judge.few && rows != 7) continue;
        for (int group : {0, 32, 64, 128}) {
            check(judge, {rows, 31, 33, group});
            if (rows < 1024) check(judge, {rows, 257, 45, group});
        }
    }
    const int shapes[][3] = {{50, 720, 64},   {50, 2048, 45}, {113, 960, 72},
                             {113, 2560, 33}, {64, 768, 64},  {64, 3072, 40}};
    for (const auto& s : shapes)
        for (int group : {0, 32, 64, 128}) {
            if (judge.few) break;
            for (Storage x : {Storage::f32, Storage::rounded, Storage::bf16})
                check(judge, {s[0], s[1], s[2], group, x, x});
        }
    for (int rows : {7, 50})
        for (int group : {0, 64})
            for (Storage y : {Storage::f32, Storage::rounded, Storage::bf16})
                for (Activation a : {Activation::none, Activation::gelu_tanh, Activation::silu}) {
                    Case c{rows, 96, 47, group, y, y};
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
