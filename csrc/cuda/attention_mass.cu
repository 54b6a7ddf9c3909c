// How much each key is looked at: over all rows, the sums of softmax(q k^T / sqrt(head_dim)), a row
// of them a head. Of 50 rows, 15 heads of 64 and 141 keys.
//
// A block takes a head, a warp every fourth row, a lane every 32nd key; what a warp sums up lies in
// shared memory beside its scores:
//
//     [head_dim] query | [keys] scores | [keys] sums      of each warp
//
// Float32, with the functions of the C library: a dot product in order of the dimensions, a key's
// sum in order of a warp's rows, the warps in order. So two runs give the same bits.
// 14 MFLOP and the keys once a head: it is as long as starting it and 13 rows of a warp, and runs
// only for plans that ask what is looked at. Measured nowhere yet.
#include "cuda/epilogue.cuh"

namespace smolvla::cuda {
namespace {

constexpr int kWarps = 4;

struct Problem {
    Mat q, mass;
    const int* lengths;
    const void* keys;  // [kv_heads, capacity, head_dim]
    int capacity, group, head_dim;
    float scale;
    bool add;
};

template <class Kv>
__global__ void __launch_bounds__(32 * kWarps) attention_mass_kernel(Problem p) {
    const int head = blockIdx.x, warp = warp_index(), lane = lane_index(), columns = p.mass.cols;
    const int words = p.head_dim + 2 * columns;  // of a warp
    float* all = shared_memory<float>();
    float *query = all + warp * words, *scores = query + p.head_dim, *sums = scores + columns;
    const Kv* keys =
        static_cast<const Kv*>(p.keys) + size_t(head / p.group) * size_t(p.capacity) * p.head_dim;

    for (int key = lane; key < columns; key += 32) sums[key] = 0.0f;
    for (int row = warp; row < p.q.rows; row += kWarps) {
        const int length = min(p.lengths[row], min(p.capacity, columns));
        __syncwarp();  // nobody still reads the query before
        for (int d = lane; d < p.head_dim; d += 32)
            query[d] = get(p.q, row, head * p.head_dim + d) * p.scale;
        __syncwarp();
        float most = -INFINITY;
        for (int key = lane; key < length; key += 32) {
            float dot = 0.0f;
            for (int d = 0; d < p.head_dim; ++d)
                dot = fmaf(query[d], widened(keys[size_t(key) * p.head_dim + d]), dot);
            scores[key] = dot;
            most = fmaxf(most, dot);
        }
        most = max_over<>(most);
        float sum = 0.0f;
        for (int key = lane; key < length; key += 32) {
            scores[key] = expf(scores[key] - most);
            sum += scores[key];
        }
        sum = sum_over<>(sum);
        for (int key = lane; key < length; key += 32) sums[key] += scores[key] / sum;
    }
    __syncthreads();
    float* to = p.mass.data + head * p.mass.ld;
    for (int key = threadIdx.x; key < columns; key += 32 * kWarps) {
        float total = p.add ? to[key] : 0.0f;
        for (int w = 0; w < kWarps; ++w) total += all[w * words + p.head_dim + columns + key];
        to[key] = total;
    }
}

}  // namespace

cudaError_t attention_mass(Mat q, const DeviceKv& kv, int heads, const int* lengths, bool add,
                           Mat mass, cudaStream_t stream) {
    const Problem p{q,           mass,
                    lengths,     kv.keys,
                    kv.capacity, heads / kv.kv_heads,
                    kv.head_dim, 1.0f / sqrtf(static_cast<float>(kv.head_dim)),
                    add};
    Launch how;
    how.grid = dim3(heads);
    how.block = dim3(32 * kWarps);
    how.shared_bytes = kWarps * (size_t(kv.head_dim) + 2 * size_t(mass.cols)) * sizeof(float);
    how.stream = stream;
    if (how.shared_bytes > 48 * 1024) return cudaErrorInvalidValue;
    return kv.bf16 ? launch(attention_mass_kernel<__nv_bfloat16>, how, p)
                   : launch(attention_mass_kernel<float>, how, p);
}

}  // namespace smolvla::cuda
