// The operations a device must provide. The model (csrc/model) is written once against this file
// and knows nothing of threads, instruction sets or memory layouts; a backend implements Backend.
//
// An operation is as coarse as the fusion that a backend wants to do in one pass: a linear layer
// carries its bias, activation and residual; attention carries scale, lengths and softmax. None
// returns a value to the host. Matrices are row-major views [rows, cols], float32 unless their
// Storage says otherwise; every operation takes any storage where its comment says "activations".
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "ops/storage.h"
#include "runtime/packed_image.h"
#include "runtime/tensor_source.h"

namespace smolvla {

struct Mat {
    float* data = nullptr;
    int rows = 0, cols = 0;
    ptrdiff_t ld = 0;  // words from one row to the next
    Storage storage = Storage::f32;

    float* row(int r) const { return data + r * ld; }
    float* at(int r, int column) const { return row(r) + words_of(column, storage); }
    Mat top(int n) const { return {data, n, cols, ld, storage}; }  // the first n rows
    Mat below(int first, int n) const { return {row(first), n, cols, ld, storage}; }
    // In Storage::bf16 `first` is even.
    Mat columns(int first, int n) const { return {at(0, first), rows, n, ld, storage}; }
    float value(int r, int column) const;  // of Storage::i8 there are rows only
};

// What weights stored in bfloat16 are multiplied with: the activations as they are (float32,
// exact), or rounded to bfloat16. Sums are float32 in both.
enum class Compute { float32, bfloat16 };
Compute parse_compute(const std::string& name);
const char* compute_name(Compute compute);

enum class Activation { none, gelu_tanh, silu };

// A weight matrix in the backend's own layout, from float32, bfloat16 or integer storage.
struct Linear;
// The keys and values of one layer, in the backend's own layout.
struct KvStore;

struct LinearOptions {
    const float* bias = nullptr;  // [out]; overrides the weight's own
    Activation activation = Activation::none;
    Mat residual = {};   // [rows, out], may be the output itself
    float scale = 1.0f;  // y = activation(x W^T + bias) * scale * column_scale + residual
    const float* column_scale = nullptr;  // [out] in whole panels, or null for 1; of none gated
};

// Row i of q attends to the first lengths[i] keys. Every mask of SmolVLA has this form: vision
// (all), prefix (image and text rows stop before the state key), expert (prefix, then causal).
struct AttentionShape {
    int heads, kv_heads, head_dim;
    const int* lengths;  // [rows of q]
};

// A byte frame [height, width, 3] or float frame in [0, 1], RGB.
struct Frame {
    const void* data = nullptr;  // null: the camera is masked
    bool is_u8 = true;
    int height = 0, width = 0;
};

// How a backend holds a weight, and what computes with it.
struct LinearInfo {
    std::string name;         // tensor names joined by '+'
    int in = 0, columns = 0;  // columns: of the matrix, twice the result's when gated
    int bits = 0;             // of an element
    int group = 0;            // elements of a row under one scale; 0: no scales
    std::string compute;      // what its products are made in: float32, bfloat16 or int8
    std::string kernel;       // as the dispatch table names it
    size_t bytes = 0;         // in memory, packed, with scales
};

struct BackendInfo {
    std::string isa;
    Compute compute;
    int threads;
    size_t weight_bytes, buffer_bytes;
    std::vector<std::string> kernels;  // the chosen ones
};

// Rows [*, columns of the result] of which a few are read, in their storage dtype.
struct Table {
    const void* rows = nullptr;
    DType dtype = DType::f32;
    const float* scales = nullptr;  // of i8: what a code of each row stands for
};

class Backend {
public:
    virtual ~Backend() = default;
    virtual BackendInfo info() const = 0;
    virtual LinearInfo describe(const Linear* w) const = 0;

    // --- while loading -------------------------------------------------------------------------
    // Weights [out_i, in] stacked along the output, each read from `source` in its own dtype;
    // biases are stacked the same way (all or none). With `gated`, exactly two weights: silu(first)
    // * second.
    virtual const Linear* load_linear(const TensorSource& source,
                                      const std::vector<std::string>& weights,
                                      const std::vector<std::string>& biases, int in,
                                      const std::vector<int>& out, bool gated) = 0;
    // A computed float32 weight [out, in], row-major; not looked at when weights are filled.
    virtual const Linear* make_linear(const std::string& name, const float* weight, int out,
                                      int in) = 0;
    // Constants that stay beside the weights: zeroed and for the caller to fill, unless weights
    // are filled: then they hold what they were filled with when the packed image was written.
    virtual float* make_weights(const std::string& name, size_t count) = 0;
    virtual bool weights_filled() const = 0;
    // After the last weight. Raises a checkpoint error when the packed image was of others.
    virtual void finish_weights() = 0;
    // What the weights have become, to be mapped by the next backend of this packed_layout().
    virtual void write_packed(const std::string& path, const std::string& bundle,
                              const std::string& config) = 0;
    virtual KvStore* make_kv(int kv_heads, int head_dim, int capacity) = 0;
    virtual float* make_buffer(size_t count) = 0;  // zeroed, lives as long as the backend
    // How matrices are best stored that only feed linear layers of weights in bfloat16. `unit`:
    // what they are written in, in columns (a head, a patch row); an odd one excludes pairs.
    virtual Storage activation_storage(int unit) const = 0;
    virtual Mat make_mat(int rows, int cols, Storage storage = Storage::f32);
    // The memory of an activation as it is best written for one linear layer, and for nothing else.
    virtual Mat operand(Mat activation, const Linear* reader) const = 0;
    Mat make_activation(int rows, int cols, int unit = 2) {
        return make_mat(rows, cols, activation_storage(unit));
    }

    // --- while running; no allocation ------------------------------------------------------------
    // x and y are activations; a residual is float32 and may be y itself.
    virtual void linear(Mat x, const Linear* w, Mat y, const LinearOptions& options) = 0;
    // x float32, y activations, or what `operand` gave.
    virtual void layer_norm(Mat x, const float* weight, const float* bias, float eps, Mat y) = 0;
    virtual void rms_norm(Mat x, const float* weight, float eps, Mat y) = 0;
    // Rotates every head of x in place; row i by the angles of table row first + i.
    virtual void rope(Mat x, int heads, Mat cosine, Mat sine, int first) = 0;
    // Writes rows of keys and values [rows, kv_heads * head_dim] at positions first... Keys, values
    // and q are float32 or of activation_storage(head_dim).
    virtual void store_kv(Mat keys, Mat values, KvStore* kv, int first) = 0;
    // out activations.
    virtual void attention(Mat q, const KvStore* kv, const AttentionShape& shape, Mat out) = 0;
    // Frame -> [-1, 1] pixels [3, height, width]: aspect kept, padded left and top with -1.
    virtual void letterbox(const Frame& frame, float* pixels, int height, int width) = 0;
    // pixels [3, height, width] -> rows [patches, 3 * patch * patch] in (channel, y, x) order,
    // activations.
    virtual void patchify(const float* pixels, int height, int width, int patch, Mat rows) = 0;
    // Row (Y, X) of `out` joins the scale x scale rows of x around it, y slow and x fast; the rows
    // of x form a side x side grid. Activations of one storage.
    virtual void pixel_shuffle(Mat x, int side, int scale, Mat out) = 0;
    // out[i] = table[ids[i]] * scale.
    virtual void gather_rows(const Table& table, const int* ids, int count, float scale,
                             Mat out) = 0;
    // y = x * scale; x float32, y activations.
    virtual void copy(Mat x, float scale, Mat y) = 0;
    // x <- x + dt * v, where v is first guided: v <- v - gain * (previous - (x - t v)) *
    // weight[row].
    virtual void flow_update(Mat x, Mat v, float dt, float t, Mat previous, const float* weight,
                             float gain) = 0;
};

// With an `image` the weights are mapped from it.
std::unique_ptr<Backend> make_cpu_backend(size_t weight_bytes, size_t buffer_bytes, int threads,
                                          const std::string& isa, Compute compute,
                                          std::shared_ptr<const PackedImage> image = nullptr);

// How weights lie in memory with these kernels: two machines of one layout can share an image.
std::string packed_layout(const std::string& isa, Compute compute);

}  // namespace smolvla
