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
    patch_ids_ = ops.make_ints(static_cast<size_t>(patches));
    block_ids_ = ops.make_ints(static_cast<size_t>(c.max_image_tokens()));
    picked_positions_ = ops.make_mat(patches, width);
    new_tokens_ = ops.make_mat(c.max_image_tokens(), c.text_width);
    old_tokens_ = ops.make_mat(c.max_image_tokens(), c.text_width);
    sums_ = ops.make_mat(c.max_image_tokens(), 5);
    host_sums_.reserve(size_t(5) * c.max_image_tokens());
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

StageKey Vision::key(const Pass& p, int index) const {
    const char* name = !p.kept ? "vision" : p.blocks == 0 ? "vision kept" : "vision blocks";
    return {name, p.height, p.width, index, p.blocks, {p.skip}};
}

void Vision::encode(const float* pixels, int height, int width, LayerSet skip, Mat tokens,
                    Trace* trace, int index) {
    Pass p{grid(height, width), pixels, height, width, skip, nullptr};
    p.tokens = tokens;
    use(p.grid);
    if (!trace) return ops_.stage(key(p, index), [&] { run(p); });
    p.trace = trace;
    p.suffix = "." + std::to_string(index);
    trace->put("mid.pixels" + p.suffix, {1, 3, height, width},
               {const_cast<float*>(pixels), 3 * height, width, width});
    run(p);
}

void Vision::make_kept(Kept& kept) {
    const int heads = config_.vision_heads;
    while (kept.kv.size() < layers_.size())
        kept.kv.push_back(ops_.make_kv(heads, config_.vision_width / heads, config_.max_patches()));
    if (!kept.tokens.data)
        kept.tokens = ops_.make_mat(config_.max_image_tokens(), config_.text_width);
}

void Vision::encode_kept(const float* pixels, int height, int width, LayerSet skip, Kept& kept,
                         int index) {
    Pass p{grid(height, width), pixels, height, width, skip, &kept};
    p.tokens = kept.tokens.top(p.grid.tokens(config_.scale_factor));
    use(p.grid);
    ops_.stage(key(p, index), [&] { run(p); });
}

float Vision::encode_blocks(const float* pixels, int height, int width, LayerSet skip,
                            const int* blocks, int count, const std::function<bool(int)>& clean,
                            Kept& kept, int index) {
    Pass p{grid(height, width), pixels, height, width, skip, &kept, count};
    use(p.grid);
    const int scale = config_.scale_factor, across = p.grid.side / scale;
    size_t row = 0;
    for (int i = 0; i < count; ++i)
        for (int dy = 0; dy < scale; ++dy)
            for (int dx = 0; dx < scale; ++dx)
                ids_[row++] = (blocks[i] / across * scale + dy) * p.grid.side +
                              blocks[i] % across * scale + dx;
    ops_.write(ids_.data(), row, patch_ids_);
    ops_.write(blocks, static_cast<size_t>(count), block_ids_);
    ops_.stage(key(p, index), [&] { run(p); });

    host_sums_.resize(size_t(count) * sums_.cols);
    ops_.read(sums_.top(count), host_sums_.data());
    float most = -1;
    for (int i = 0; i < count; ++i) {
        const float* sums = &host_sums_[size_t(i) * sums_.cols];  // of new and old tokens
        if (clean(i)) most = std::max(most, std::sqrt(sums[3] / std::max(sums[1], 1e-30f)));
    }
    return most;
}

void Vision::record_kept(const float* pixels, int height, int width, LayerSet skip, Kept& kept,
                         int count, int index) {
    Pass p{grid(height, width), pixels, height, width, skip, &kept, count};
    p.tokens = kept.tokens.top(p.grid.tokens(config_.scale_factor));
    ops_.record_stage(key(p, index), [&] { run(p); });
}

void Vision::run(const Pass& p) {
    const int all = p.grid.patches(), scale = config_.scale_factor;
    const int n = p.blocks ? p.blocks * scale * scale : all;
    const Mat x = x_.top(n), patches = patches_.top(n), normed = normed_.top(n);
    ops_.patchify(p.pixels, p.height, p.width, config_.patch_size, p.blocks ? patch_ids_ : nullptr,
                  patches);
    LinearOptions embed;
    embed.residual = positions(p.grid);
    if (p.blocks) {
        embed.residual = picked_positions_.top(n);
        ops_.pick_rows(positions(p.grid), patch_ids_, embed.residual);
    }
    ops_.linear(patches, patch_, x, embed);
    if (p.trace) p.trace->put("mid.vision_embed" + p.suffix, x);

    for (size_t i = 0; i < layers_.size(); ++i) {
        if (has(p.skip, static_cast<int>(i))) continue;
        run_layer(i, p, x);
        if (p.trace) p.trace->put("mid.vision_layer" + std::to_string(i) + p.suffix, x);
    }
    ops_.layer_norm(x, norm_weight_, norm_bias_, config_.vision_eps, normed);
    if (p.trace) p.trace->put("out.vision" + p.suffix, normed);
    put_tokens(p);
}

void Vision::run_layer(size_t index, const Pass& p, Mat x) {
    const int n = x.rows, w = config_.vision_width;
    const Layer& l = layers_[index];
    const Mat normed = normed_.top(n), qkv = qkv_.top(n), hidden = hidden_.top(n);
    const Mat attended = attended_.top(n);
    const Mat for_qkv = ops_.operand(normed, l.qkv), for_up = ops_.operand(normed, l.up);
    const AttentionShape shape{config_.vision_heads, config_.vision_heads, w / config_.vision_heads,
                               lengths_};
    KvStore* kv = p.kept ? p.kept->kv[index] : kv_;
    LinearOptions add, gelu;
    add.residual = x;
    gelu.activation = Activation::gelu_tanh;
    gelu.column_scale = l.down_scale;
    ops_.layer_norm(x, l.norm1_weight, l.norm1_bias, config_.vision_eps, for_qkv);
    ops_.linear(for_qkv, l.qkv, qkv, {});
    if (p.blocks)
        ops_.scatter_kv(qkv.columns(w, w), qkv.columns(2 * w, w), kv, patch_ids_);
    else
        ops_.store_kv(qkv.columns(w, w), qkv.columns(2 * w, w), kv, nullptr);
    ops_.attention(qkv.columns(0, w), kv, shape, attended);
    ops_.linear(attended, l.out, x, add);
    ops_.layer_norm(x, l.norm2_weight, l.norm2_bias, config_.vision_eps, for_up);
    ops_.linear(for_up, l.up, hidden, gelu);
    ops_.linear(hidden, l.down, x, add);
}

// Pixel shuffle and connector. Blocks by themselves lie one after the other, in rows of patches: a
// picture that is one block wide.
void Vision::put_tokens(const Pass& p) {
    const int scale = config_.scale_factor;
    if (p.blocks == 0) {
        const Mat shuffled = shuffled_.top(p.grid.tokens(scale));
        ops_.pixel_shuffle(normed_.top(p.grid.patches()), p.grid.side, scale, shuffled);
        ops_.linear(shuffled, connector_, p.tokens, {});
        if (p.trace) p.trace->put("out.connector" + p.suffix, p.tokens);
        return;
    }
    const Mat shuffled = shuffled_.top(p.blocks), made = new_tokens_.top(p.blocks);
    const Mat old = old_tokens_.top(p.blocks);
    ops_.pixel_shuffle(normed_.top(p.blocks * scale * scale), scale, scale, shuffled);
    ops_.linear(shuffled, connector_, made, {});
    ops_.pick_rows(p.kept->tokens, block_ids_, old);
    ops_.compare(made, old, config_.text_width, sums_.top(p.blocks));
    ops_.put_rows(made, block_ids_, p.kept->tokens);
}

}  // namespace smolvla
