// What the CUDA backend asks of its kernels: one function a family, plain pointers into device
// memory, sizes and a stream; each returns what launching returned. Nothing here allocates or
// waits, so all of it can be captured.
//
// Rows of activations are Storage::f32, bf16_rows or i8 (ops/storage.h); `ld` counts words of four
// bytes, as in Mat.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "ops/ops.h"

namespace smolvla::cuda {

// y[row][column] = activation(sum + bias[column]) * scale * column_scale[column] +
// residual[row][column]
//
// Gated weights lie in blocks of 16 rows, 8 of the gate and 8 of what it is multiplied with, so
// that both sums of a column are in one tile of any kernel here: y = silu(gate) * up.
struct Epilogue {
    const float* bias = nullptr;    // null: none
    const int* bias_row = nullptr;  // row *bias_row of a table of biases; null: the first
    ptrdiff_t bias_ld = 0;
    const float* column_scale = nullptr;
    const float* residual = nullptr;
    ptrdiff_t residual_ld = 0;
    float scale = 1.0f;
    Activation activation = Activation::none;
    bool gated = false;
    bool wide = false;  // set by the launching functions: see lies_wide
    Mat y = {};         // f32 or bf16_rows; its columns are the result's
};

// Once in a process and device, before the others: allows the shared memory that they ask for.
// `keys`: the most that attention_f32 will see, and the head_dim.
cudaError_t prepare_gemm_bf16();
cudaError_t prepare_gemm_i8();
cudaError_t prepare_gemm_w4();
cudaError_t prepare_attention(int keys, int head_dim);

// Rows of W follow each other without gaps, `columns` of them, padded to whole blocks where gated.
// x float32; W float32 or bfloat16 [columns, depth]. Sums are float32.
cudaError_t gemm_f32(Mat x, const void* w, bool w_bf16, int columns, int depth, const Epilogue& e,
                     int processors, cudaStream_t stream);
// x bf16_rows; W bfloat16 [columns, w_ld], w_ld a multiple of 8, zero behind `depth`.
cudaError_t gemm_bf16(Mat x, const void* w, int w_ld, int columns, int depth, const Epilogue& e,
                      int processors, cudaStream_t stream);
// x i8; W int8 [columns, w_ld], w_ld a multiple of 16, zero behind `depth`; w_scale [columns].
cudaError_t gemm_i8(Mat x, const void* w, int w_ld, const float* w_scale, int columns, int depth,
                    const Epilogue& e, int processors, cudaStream_t stream);
// x bf16_rows, zero behind its columns up to a multiple of 8 and not read beyond; W as fragments
// (cuda/fragments.h).
cudaError_t gemm_w4(Mat x, const uint4* w, const uint32_t* w_scale, int group, int columns,
                    int depth, const Epilogue& e, int processors, cudaStream_t stream);

// Keys and values of one layer, [kv_heads, capacity, head_dim] each, float32 or bfloat16.
struct DeviceKv {
    void *keys, *values;
    int kv_heads, head_dim, capacity;
    bool bf16;
};
// keys, values: f32 or bf16_rows [rows, kv_heads * head_dim].
cudaError_t store_kv(Mat keys, Mat values, const DeviceKv& kv, const int* first,
                     cudaStream_t stream);
cudaError_t scatter_kv(Mat keys, Mat values, const DeviceKv& kv, const int* positions,
                       cudaStream_t stream);
// Of lengths beyond the capacity both take the capacity.
// Any head_dim up to 256, products in float32. q f32 or bf16_rows, out f32 or bf16_rows.
cudaError_t attention_f32(Mat q, const DeviceKv& kv, int heads, const int* lengths, Mat out,
                          cudaStream_t stream);
// head_dim 64, products of bfloat16 with float32 sums. q f32 or bf16_rows (rows on 16 bytes, else
// an invalid value), kv bfloat16 (on 16 bytes), out bf16_rows.
cudaError_t attention_bf16(Mat q, const DeviceKv& kv, int heads, const int* lengths, Mat out,
                           int processors, cudaStream_t stream);
// As in ops/ops.h; float32. An invalid value where (head_dim + 2 mass.cols) words of four warps
// are more than 48 KB.
cudaError_t attention_mass(Mat q, const DeviceKv& kv, int heads, const int* lengths, bool add,
                           Mat mass, cudaStream_t stream);

// y f32, bf16_rows or i8. bias null: RMSNorm.
cudaError_t norm(Mat x, const float* weight, const float* bias, bool center, float eps, Mat y,
                 cudaStream_t stream);
// x f32 or bf16_rows, y i8: what gemm_i8 takes.
cudaError_t quantize_rows(Mat x, Mat y, cudaStream_t stream);
cudaError_t rope(Mat x, int heads, Mat cosine, Mat sine, const int* first, cudaStream_t stream);
// q and keys as `rope` rotates them, in place; then keys and values as store_kv stores them.
cudaError_t rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine,
                       const int* first, const DeviceKv& kv, cudaStream_t stream);
// y = x * scale; any of f32 and bf16_rows. What y has behind its columns becomes zero up to
// `padded` columns.
cudaError_t copy_rows(Mat x, float scale, Mat y, int padded, cudaStream_t stream);
cudaError_t pixel_shuffle(Mat x, int side, int scale, Mat out, cudaStream_t stream);
// ids null: every patch, in order.
cudaError_t patchify(const float* pixels, int height, int width, int patch, const int* ids,
                     Mat rows, cudaStream_t stream);
// frame: in device memory, height x width x 3.
cudaError_t letterbox(const Frame& frame, float* pixels, int height, int width,
                      cudaStream_t stream);
// last without data: of a row of the schedule three numbers are read, else five.
cudaError_t flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull, Mat last,
                        cudaStream_t stream);
cudaError_t advance(int* number, cudaStream_t stream);

// As in ops/ops.h, all float32. x and out have the same columns.
cudaError_t pick_rows(Mat x, const int* ids, Mat out, cudaStream_t stream);
cudaError_t put_rows(Mat x, const int* ids, Mat out, cudaStream_t stream);
cudaError_t add_rows(Mat x, Mat z, float scale, Mat y, cudaStream_t stream);
cudaError_t compare_rows(Mat a, Mat b, int columns, Mat sums, cudaStream_t stream);
cudaError_t block_change(const float* pixels, const float* reference, int height, int width,
                         int patch, int scale, float* change, cudaStream_t stream);
cudaError_t copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                        int count, float* to, cudaStream_t stream);

}  // namespace smolvla::cuda
