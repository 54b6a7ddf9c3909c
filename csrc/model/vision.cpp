#include "model/vision.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace smolvla {

const float* load_vector(const TensorSource& source, Backend& ops, const std::string& name,
                         int size) {
    const TensorEntry& entry = source.expect(name, {size});
    float* values = ops.make_weights(name, static_cast<size_t>(size));
    if (!ops.weights_filled()) source.read_f32(entry, 0, size, values);
    return values;
}

namespace {

// What the inputs of a weight of codes are multiplied by before they are rounded, or null.
const float* load_input_scale(const TensorSource& source, Backend& ops, const std::string& weight,
                              int size) {
    const std::string name = weight + ".input_scale";
    if (!source.has(name)) return nullptr;
    const DType held = source.find(weight).dtype;
    if (held != DType::i8 && held != DType::u8)
        fail(ErrorKind::checkpoint, "tensor %s: expected none, because %s holds no codes",
             name.c_str(), weight.c_str());
    const TensorEntry& entry = source.expect(name, {size});
    float* values = ops.make_weights(name, (static_cast<size_t>(size) + 31) / 32 * 32);
    if (ops.weights_filled()) return values;
    source.read_f32(entry, 0, size, values);
    for (int i = 0; i < size; ++i)
        if (!std::isfinite(values[i]))
            fail(ErrorKind::checkpoint, "tensor %s holds %g", name.c_str(), double{values[i]});
    return values;
}

}  // namespace

Vision::Vision(const ModelConfig& c, const TensorSource& source, Backend& ops)
    : config_(c), ops_(ops) {
    const int width = c.vision_width, patches = c.max_patches();
    const int patch_inputs = 3 * c.patch_size * c.patch_size;
    patch_ = ops.load_linear(source, {"vision.patch.weight"}, {"vision.patch.bias"}, patch_inputs,
                             {width}, false);
    for (int i = 0; i < c.vision_layers; ++i) {
        const std::string at = "vision.layers." + std::to_string(i) + ".";
        Layer l;
        l.norm1_weight = load_vector(source, ops, at + "norm1.weight", width);
        l.norm1_bias = load_vector(source, ops, at + "norm1.bias", width);
        l.norm2_weight = load_vector(source, ops, at + "norm2.weight", width);
        l.norm2_bias = load_vector(source, ops, at + "norm2.bias", width);
        l.qkv = ops.load_linear(source,
                                {at + "attn.q.weight", at + "attn.k.weight", at + "attn.v.weight"},
                                {at + "attn.q.bias", at + "attn.k.bias", at + "attn.v.bias"}, width,
                                {width, width, width}, false);
        l.out = ops.load_linear(source, {at + "attn.o.weight"}, {at + "attn.o.bias"}, width,
                                {width}, false);
        l.up = ops.load_linear(source, {at + "mlp.up.weight"}, {at + "mlp.up.bias"}, width,
                               {c.vision_mlp}, false);
        l.down = ops.load_linear(source, {at + "mlp.down.weight"}, {at + "mlp.down.bias"},
                                 c.vision_mlp, {width}, false);
        l.down_scale = load_input_scale(source, ops, at + "mlp.down.weight", c.vision_mlp);
        layers_.push_back(l);
    }
    norm_weight_ = load_vector(source, ops, "vision.norm.weight", width);
    norm_bias_ = load_vector(source, ops, "vision.norm.bias", width);
    const int joined = width * c.scale_factor * c.scale_factor;
    connector_ = ops.load_linear(source, {"connector.weight"}, {}, joined, {c.text_width}, false);

    const std::string positions = "vision.position.weight";
    const TensorEntry& table = source.expect(positions, {patches, width});
    position_table_ = {ops.make_weights(positions, size_t(patches) * width), patches, width, width};
    if (!ops.weights_filled())
        source.read_f32(table, 0, int64_t(patches) * width, position_table_.data);

    kv_ = ops.make_kv(c.vision_heads, width / c.vision_heads, patches);
    patches_ = ops.make_activation(patches, patch_inputs, c.patch_size);
    x_ = ops.make_mat(patches, width);
    normed_ = ops.make_activation(patches, width, width);
    qkv_ = ops.make_activation(patches, 3 * width, width / c.vision_heads);
    attended_ = ops.make_activation(patches, width, width / c.vision_heads);
    hidden_ = ops.make_activation(patches, c.vision_mlp);
    gathered_positions_ = ops.make_mat(patches, width);
    shuffled_ = ops.make_activation(c.max_image_tokens(), joined, width);
    lengths_ = ops.make_ints(static_cast<size_t>(patches));
    ids_.assign(static_cast<size_t>(patches), 0);
}

ImageGrid Vision::grid(int height, int width) const {
    ImageGrid g{height / config_.patch_size, width / config_.patch_size, 0};
    const int64_t patches = int64_t{g.rows} * g.cols;  // g.patches() may overflow before the check
    const bool fits = patches >= 1 && patches <= config_.max_patches();
    if (fits) g.side = static_cast<int>(std::lround(std::sqrt(double(patches))));
    if (!fits || g.side * g.side != patches || g.side % config_.scale_factor != 0)
        fail(ErrorKind::input,
             "an image of %d x %d pixels gives %d x %d patches; their count must be at most %d and "
             "the square of a multiple of %d",
             width, height, g.cols, g.rows, config_.max_patches(), config_.scale_factor);
    return g;
}

bool Vision::whole(const ImageGrid& g) const {
    const int side = config_.image_size / config_.patch_size;
    return g.rows == side && g.cols == side;
}

Mat Vision::positions(const ImageGrid& g) {
    return whole(g) ? position_table_ : gathered_positions_.top(g.patches());
}

// Lengths, and the position table's rows for an image of another size: fractions of its height and
// width, as transformers buckets them (row floor(i * side / n)).
void Vision::use(const ImageGrid& g) {
    if (g.rows == used_.rows && g.cols == used_.cols) return;
    const int n = g.patches(), side = config_.image_size / config_.patch_size;
    std::fill_n(ids_.begin(), n, n);
    ops_.write(ids_.data(), static_cast<size_t>(n), lengths_);
    if (!whole(g)) {
        for (int r = 0; r < n; ++r) {
            const int y = (r / g.cols) * side / g.rows, x = (r % g.cols) * side / g.cols;
            ids_[static_cast<size_t>(r)] = y * side + x;
        }
        ops_.gather_rows({position_table_.data, DType::f32}, ids_.data(), n, 1.0f,
                         gathered_positions_.top(n));
    }
    used_ = g;
}

void Vision::encode(const float* pixels, int height, int width, Mat tokens, Trace* trace,
                    int index) {
    const ImageGrid g = grid(height, width);
    use(g);
    if (!trace)
        return ops_.stage({"vision", height, width, index},
                          [&] { run(g, pixels, height, width, tokens, nullptr, {}); });
    const std::string suffix = "." + std::to_string(index);
    trace->put("mid.pixels" + suffix, {1, 3, height, width},
               {const_cast<float*>(pixels), 3 * height, width, width});
    run(g, pixels, height, width, tokens, trace, suffix);
}

void Vision::run(const ImageGrid& g, const float* pixels, int height, int width, Mat tokens,
                 Trace* trace, const std::string& suffix) {
    const int n = g.patches(), w = config_.vision_width;
    const Mat x = x_.top(n), normed = normed_.top(n), qkv = qkv_.top(n), hidden = hidden_.top(n);
    const Mat attended = attended_.top(n), patches = patches_.top(n);
    const AttentionShape shape{config_.vision_heads, config_.vision_heads, w / config_.vision_heads,
                               lengths_};

    ops_.patchify(pixels, height, width, config_.patch_size, patches);
    LinearOptions embed;
    embed.residual = positions(g);
    ops_.linear(patches, patch_, x, embed);
    if (trace) trace->put("mid.vision_embed" + suffix, x);

    LinearOptions add, gelu;
    add.residual = x;
    gelu.activation = Activation::gelu_tanh;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const Layer& l = layers_[i];
        const Mat for_qkv = ops_.operand(normed, l.qkv), for_up = ops_.operand(normed, l.up);
        ops_.layer_norm(x, l.norm1_weight, l.norm1_bias, config_.vision_eps, for_qkv);
        ops_.linear(for_qkv, l.qkv, qkv, {});
        ops_.store_kv(qkv.columns(w, w), qkv.columns(2 * w, w), kv_, 0);
        ops_.attention(qkv.columns(0, w), kv_, shape, attended);
        ops_.linear(attended, l.out, x, add);
        ops_.layer_norm(x, l.norm2_weight, l.norm2_bias, config_.vision_eps, for_up);
        gelu.column_scale = l.down_scale;
        ops_.linear(for_up, l.up, hidden, gelu);
        ops_.linear(hidden, l.down, x, add);
        if (trace) trace->put("mid.vision_layer" + std::to_string(i) + suffix, x);
    }
    ops_.layer_norm(x, norm_weight_, norm_bias_, config_.vision_eps, normed);
    if (trace) trace->put("out.vision" + suffix, normed);

    const Mat shuffled = shuffled_.top(g.tokens(config_.scale_factor));
    ops_.pixel_shuffle(normed, g.side, config_.scale_factor, shuffled);
    ops_.linear(shuffled, connector_, tokens, {});
    if (trace) trace->put("out.connector" + suffix, tokens);
}

}  // namespace smolvla
