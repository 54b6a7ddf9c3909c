// The operations a device must provide. The model (csrc/model) is written once against this file
// and knows nothing of threads, instruction sets or memory layouts; a backend implements Backend.
//
// An operation is as coarse as the fusion that a backend wants to do in one pass: a linear layer
// carries its bias, activation and residual; attention carries scale, lengths and softmax. None
// returns a value to the host. Matrices are row-major views [rows, cols], float32 unless their
// Storage says otherwise; every operation takes any storage where its comment says "activations".
//
// Memory is the backend's, and may not be the host's: what make_mat, make_buffer and make_ints gave
// is filled with `write` and looked at with `read`. Numbers that change from call to call are ints
// in that memory, so that a stage which a backend recorded once reads them anew each time.
#pragma once

#include <cstddef>
#include <cstdint>
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
struct Linear {};
// The keys and values of one layer, in the backend's own layout.
struct KvStore {};

struct LinearOptions {
    // [out] in whole panels, overrides the weight's own; with `bias_row` row *bias_row of a table.
    const float* bias = nullptr;
    const int* bias_row = nullptr;
    ptrdiff_t bias_ld = 0;
    Activation activation = Activation::none;
    Mat residual = {};   // [rows, out], may be the output itself
    float scale = 1.0f;  // y = activation(x W^T + bias) * scale * column_scale + residual
    const float* column_scale = nullptr;  // [out] in whole panels, or null for 1; of none gated
};

// Row i of q attends to the first lengths[i] keys. Every mask of SmolVLA has this form: vision
// (all), prefix (image and text rows stop before the state key), expert (prefix, then causal).
struct AttentionShape {
    int heads, kv_heads, head_dim;
    const int* lengths;  // [rows of q], of make_ints
};

// Real-time chunking's pull towards the rest of the previous chunk; see Backend::flow_update.
struct Pull {
    Mat previous = {};              // [rows, dims]; without data there is none
    const float* weight = nullptr;  // [rows]
};

// What a recorded stage was recorded for: everything about it that is not in the backend's memory.
// layers: sets of layers that are left out, or treated in another way.
struct StageKey {
    const char* name;
    int a = 0, b = 0, c = 0, d = 0;
    uint64_t layers[3] = {};
};

// Calls a function object that outlives it; unlike std::function it never allocates.
class Body {
public:
    template <class F>
    Body(const F& f)  // NOLINT: converts where it is passed, as std::function does
        : f_(&f), call_([](const void* p) { (*static_cast<const F*>(p))(); }) {}
    void operator()() const { call_(f_); }

private:
    const void* f_;
    void (*call_)(const void*);
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
    std::string isa;  // of the CPU's kernels; empty on another device
    Compute compute;
    int threads;                        // of the CPU's kernels
    size_t weight_bytes, buffer_bytes;  // in the device's memory
    std::vector<std::string> kernels;   // the chosen ones

    struct Gpu {
        std::string name;
        int sm = 0;               // compute capability, 87 for 8.7; 0: there is none
        size_t memory_bytes = 0;  // all that the device has
        size_t pinned_bytes = 0;  // of the host's memory, what copies pass through
        int graphs = 0;           // stages recorded so far
    } gpu = {};
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
    // The same for constants that no operation is given: they need not be in the device's memory.
    virtual float* make_host_weights(const std::string& name, size_t count) {
        return make_weights(name, count);
    }
    virtual bool weights_filled() const = 0;
    // After the last weight. Raises a checkpoint error when the packed image was of others.
    virtual void finish_weights() = 0;
    // What the weights have become, to be mapped by the next backend of this packed_layout().
    virtual void write_packed(const std::string& path, const std::string& bundle,
                              const std::string& config) = 0;
    virtual KvStore* make_kv(int kv_heads, int head_dim, int capacity) = 0;
    virtual float* make_buffer(size_t count) = 0;  // zeroed, lives as long as the backend
    virtual int* make_ints(size_t count);          // likewise
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
    // Between the host's memory (rows without gaps) and the backend's. `to` is float32, `from`
    // anything but rows of integers; `read` waits for what was asked before it.
    virtual void write(const float* values, Mat to);
    virtual void write(const int* values, size_t count, int* to);
    virtual void read(Mat from, float* values);
    // Does what `body` does, which asks for operations and nothing else: a backend may run it, or
    // replay what it recorded when a body of this key ran before.
    virtual void stage(const StageKey& key, Body body);
    // Records a stage without running it, where that is what `stage` would do first.
    virtual void record_stage(const StageKey&, Body) {}
    // Room for the frames of one call: letterbox allocates nothing for so many of so many bytes.
    virtual void reserve_frames(int, size_t) {}
    // Around every call, in the thread that makes it.
    virtual void enter() {}
    virtual void leave() {}
    // Notes when what was asked so far is done; the milliseconds between two such moments, once the
    // second is there.
    static constexpr int kMoments = 160;
    virtual void mark(int moment);
    virtual double between(int first, int second) const;
    // How many rows a stage should be run with that has `rows`: a backend that records stages keeps
    // the number of keys small. The rows beyond mean nothing, and nothing may read them.
    virtual int stage_rows(int rows) const { return rows; }
    // *number += 1.
    virtual void advance(int* number);

    // x and y are activations; a residual is float32 and may be y itself.
    virtual void linear(Mat x, const Linear* w, Mat y, const LinearOptions& options) = 0;
    // x float32, y activations, or what `operand` gave.
    virtual void layer_norm(Mat x, const float* weight, const float* bias, float eps, Mat y) = 0;
    virtual void rms_norm(Mat x, const float* weight, float eps, Mat y) = 0;
    // Rotates every head of x in place; row i by the angles of table row *first + i (null: i).
    virtual void rope(Mat x, int heads, Mat cosine, Mat sine, const int* first) = 0;
    // Writes rows of keys and values [rows, kv_heads * head_dim] at positions *first... (null: 0).
    // Keys, values and q are float32 or of activation_storage(head_dim).
    virtual void store_kv(Mat keys, Mat values, KvStore* kv, const int* first) = 0;
    // The same for rows at positions[i], each position once; others keep what they hold.
    virtual void scatter_kv(Mat keys, Mat values, KvStore* kv, const int* positions) = 0;
    // What a layer does before it attends to itself: rotates q and keys as `rope` does, q with
    // `heads` heads, then stores keys and values. Three operations, or one where starting costs.
    virtual void rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine,
                            const int* first, KvStore* kv);
    // out activations.
    virtual void attention(Mat q, const KvStore* kv, const AttentionShape& shape, Mat out) = 0;
    // mass[head][key] = the weight that attention of all rows of q gives a key, and what was there
    // before with `add`. mass: [heads, keys] float32, with a column for every key of any row.
    virtual void attention_mass(Mat q, const KvStore* kv, const AttentionShape& shape, bool add,
                                Mat mass) = 0;
    // Frame -> [-1, 1] pixels [3, height, width]: aspect kept, padded left and top with -1.
    virtual void letterbox(const Frame& frame, float* pixels, int height, int width) = 0;
    // pixels [3, height, width] -> rows [patches, 3 * patch * patch] in (channel, y, x) order,
    // activations. Row i is patch ids[i] (null: i).
    virtual void patchify(const float* pixels, int height, int width, int patch, const int* ids,
                          Mat rows) = 0;
    // How far pixels are from a reference, both [3, height, width] in [-1, 1], for every block of
    // scale x scale patches: the mean of |difference| / 2 over the patch where it is largest; NaN
    // where a pixel is. change: [1, blocks].
    virtual void block_change(const float* pixels, const float* reference, int height, int width,
                              int patch, int scale, Mat change) = 0;
    // Copies the blocks `ids` of side x side pixels.
    virtual void copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                             int count, float* to) = 0;
    // Row (Y, X) of `out` joins the scale x scale rows of x around it, y slow and x fast; the rows
    // of x form a side x side grid. Activations of one storage.
    virtual void pixel_shuffle(Mat x, int side, int scale, Mat out) = 0;
    // out[i] = table[ids[i]] * scale; table and ids are the host's. Not inside a stage.
    virtual void gather_rows(const Table& table, const int* ids, int count, float scale,
                             Mat out) = 0;
    // y = x * scale; x float32, y activations.
    virtual void copy(Mat x, float scale, Mat y) = 0;
    // out[i] = x[ids[i]] and out[ids[i]] = x[i], float32; ids of make_ints.
    virtual void pick_rows(Mat x, const int* ids, Mat out) = 0;
    virtual void put_rows(Mat x, const int* ids, Mat out) = 0;
    // y = x + z * scale, float32; y may be x or z.
    virtual void add(Mat x, Mat z, float scale, Mat y) = 0;
    // Of each row of a and b, float32, over their first `columns`: sums[i] = {sum a b, sum a a,
    // sum b b, sum (a - b)^2, max |a - b|}; NaN where a row holds one.
    virtual void compare(Mat a, Mat b, int columns, Mat sums) = 0;
    // x <- x + dt * v, where v is first pulled: v <- v - gain * (previous - (x - t v)) *
    // weight[row]. Row *step of `schedule` is {dt, t, gain, now, before}. With `last` the step is
    // dt * (now * v + before * last), and last becomes v.
    virtual void flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull,
                             Mat last) = 0;

private:
    double moments_[kMoments] = {};  // of the host's clock, in milliseconds
};

// With an `image` the weights are mapped from it.
std::unique_ptr<Backend> make_cpu_backend(size_t weight_bytes, size_t buffer_bytes, int threads,
                                          const std::string& isa, Compute compute,
                                          std::shared_ptr<const PackedImage> image = nullptr);

// How weights lie in memory with these kernels: two machines of one layout can share an image.
std::string packed_layout(const std::string& isa, Compute compute);

}  // namespace smolvla
