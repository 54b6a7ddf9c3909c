// Attention, and what writes its keys and values, on arrays of other libraries.
#include "bindings/cuda_ops.h"

namespace smolvla::bindings {
namespace {

constexpr int kMaxHeadDim = 256;

// The heads of x [rows, heads, head_dim].
void check_heads(const DeviceArray& x, const char* name, int64_t kv_heads, int64_t head_dim) {
    if (x.shape[1] % kv_heads != 0 || x.shape[2] != head_dim || head_dim > kMaxHeadDim ||
        x.shape[0] * x.shape[1] > INT32_MAX)
        fail(ErrorKind::input,
             "%s: expected a multiple of %lld heads of the keys' width, at most %d, got %s", name,
             static_cast<long long>(kv_heads), kMaxHeadDim, x.describe().c_str());
}

cuda::DeviceKv cache_of(const DeviceArray& keys, const DeviceArray& values) {
    return {keys.data,          values.data,        int(keys.shape[0]),
            int(keys.shape[2]), int(keys.shape[1]), keys.element == Element::bf16};
}

py::object attention(const py::object& q, const py::object& keys, const py::object& values,
                     const py::object& lengths, py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& qs = call.input(q, "q", {floats(Element::bf16), {-1, -1, -1}});
    const DeviceArray& ks =
        call.input(keys, "keys", {floats(Element::bf16), {-1, -1, -1}, false, 16});
    const DeviceArray& vs = call.input(values, "values", {{ks.element}, ks.shape, false, 16});
    check_heads(qs, "q", ks.shape[0], ks.shape[2]);
    const int* counts = call.numbers(lengths, "lengths", qs.shape[0]);
    const DeviceArray& y = call.output(out, "out", {floats(qs.element), qs.shape});
    const cuda::DeviceKv kv = cache_of(ks, vs);
    // The products of bfloat16; everything else is computed in float32.
    const bool fast = kv.bf16 && kv.head_dim == 64 && y.element == Element::bf16;
    if (fast && qs.element == Element::bf16) call.expect_aligned(qs, 16);
    const Mat from = Call::rows(qs), to = Call::rows(y);
    const int heads = int(qs.shape[1]);
    bool too_many = false;
    call.run("attention", [&](cudaStream_t stream, int processors) {
        if (fast) return cuda::attention_bf16(from, kv, heads, counts, to, processors, stream);
        if (cuda::prepare_attention(kv.capacity, kv.head_dim) != cudaSuccess) {
            cudaGetLastError();
            too_many = true;
            return cudaSuccess;
        }
        return cuda::attention_f32(from, kv, heads, counts, to, stream);
    });
    if (too_many)
        fail(ErrorKind::input,
             "keys: attention in float32 keeps the scores of every key in shared memory, and this "
             "GPU has not enough for %s. Use bfloat16 with 64 values a head",
             ks.describe().c_str());
    return out;
}

// Rows of keys and values, and the cache that they go to.
struct Stored {
    Stored(Call& call, const py::object& keys, const py::object& values,
           const py::object& key_cache, const py::object& value_cache, bool rotated)
        : kc(call.updated(key_cache, "key_cache", {floats(Element::bf16), {-1, -1, -1}, false})),
          vc(call.updated(value_cache, "value_cache", {{kc.element}, kc.shape, false})),
          ks(rotated ? call.updated(keys, "keys", rows_of(-1))
                     : call.input(keys, "keys", rows_of(-1))),
          vs(call.input(values, "values", rows_of(ks.shape[0]))) {}
    Wanted rows_of(int64_t rows) const {
        return {floats(Element::bf16), {rows, kc.shape[0], kc.shape[2]}};
    }
    void expect_room() const {
        if (ks.shape[0] > kc.shape[1])
            fail(ErrorKind::input, "keys: expected at most the %lld rows of key_cache, got %s",
                 static_cast<long long>(kc.shape[1]), ks.describe().c_str());
    }
    const DeviceArray &kc, &vc, &ks, &vs;
};

// The angles of every position, for heads of x [rows, heads, head_dim].
struct Angles {
    Angles(Call& call, const DeviceArray& x, const py::object& cosine, const py::object& sine)
        : co(call.input(cosine, "cosine", {{Element::f32}, {-1, x.shape[2] / 2}})),
          si(call.input(sine, "sine", {{Element::f32}, co.shape})) {
        if (x.shape[2] % 2 != 0)
            fail(ErrorKind::input, "x: expected heads of an even width, got %s",
                 x.describe().c_str());
    }
    void expect_rows(const DeviceArray& x) const {
        if (x.shape[0] > co.shape[0])
            fail(ErrorKind::input, "cosine: expected a row for each of the %lld rows, got %s",
                 static_cast<long long>(x.shape[0]), co.describe().c_str());
    }
    const DeviceArray &co, &si;
};

void store_kv(const py::object& keys, const py::object& values, const py::object& key_cache,
              const py::object& value_cache, const py::object& first, const py::object& caller) {
    Call call(caller);
    const Stored s(call, keys, values, key_cache, value_cache, false);
    const int* position = call.number(first, "first");
    if (!position) s.expect_room();
    call.run("store_kv", [&](cudaStream_t stream, int) {
        return cuda::store_kv(Call::rows(s.ks), Call::rows(s.vs), cache_of(s.kc, s.vc), position,
                              stream);
    });
}

void scatter_kv(const py::object& keys, const py::object& values, const py::object& key_cache,
                const py::object& value_cache, const py::object& positions,
                const py::object& caller) {
    Call call(caller);
    const Stored s(call, keys, values, key_cache, value_cache, false);
    const int* where = call.numbers(positions, "positions", s.ks.shape[0]);
    call.run("scatter_kv", [&](cudaStream_t stream, int) {
        return cuda::scatter_kv(Call::rows(s.ks), Call::rows(s.vs), cache_of(s.kc, s.vc), where,
                                stream);
    });
}

void rope(const py::object& x, const py::object& cosine, const py::object& sine,
          const py::object& first, const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.updated(x, "x", {floats(Element::bf16), {-1, -1, -1}});
    const Angles angles(call, xs, cosine, sine);
    const int* position = call.number(first, "first");
    if (!position) angles.expect_rows(xs);
    call.run("rope", [&](cudaStream_t stream, int) {
        return cuda::rope(Call::rows(xs), int(xs.shape[1]), Call::rows(angles.co),
                          Call::rows(angles.si), position, stream);
    });
}

// Both in one launch.
void rope_store(const py::object& q, const py::object& keys, const py::object& values,
                const py::object& cosine, const py::object& sine, const py::object& key_cache,
                const py::object& value_cache, const py::object& first, const py::object& caller) {
    Call call(caller);
    const Stored s(call, keys, values, key_cache, value_cache, true);
    const std::vector<int64_t> shape{s.ks.shape[0], -1, s.ks.shape[2]};
    const DeviceArray& qs = call.updated(q, "q", {floats(Element::bf16), shape});
    if (s.kc.element == Element::f32)
        for (const DeviceArray* x : {&qs, &s.ks, &s.vs})
            if (x->element != Element::f32)
                fail(ErrorKind::input,
                     "key_cache: expected bfloat16 beside rows of bfloat16, got %s",
                     s.kc.describe().c_str());
    const Angles angles(call, qs, cosine, sine);
    const int* position = call.number(first, "first");
    if (!position) s.expect_room(), angles.expect_rows(qs);
    call.run("rope_store", [&](cudaStream_t stream, int) {
        return cuda::rope_store(Call::rows(qs), int(qs.shape[1]), Call::rows(s.ks),
                                Call::rows(s.vs), Call::rows(angles.co), Call::rows(angles.si),
                                position, cache_of(s.kc, s.vc), stream);
    });
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
    using py::arg;
    m.def("attention", &attention, arg("q"), arg("keys"), arg("values"), arg("lengths"), arg("out"),
          arg("caller"));
    m.def("store_kv", &store_kv, arg("keys"), arg("values"), arg("key_cache"), arg("value_cache"),
          arg("first"), arg("caller"));
    m.def("scatter_kv", &scatter_kv, arg("keys"), arg("values"), arg("key_cache"),
          arg("value_cache"), arg("positions"), arg("caller"));
    m.def("rope_store", &rope_store, arg("q"), arg("keys"), arg("values"), arg("cosine"),
          arg("sine"), arg("key_cache"), arg("value_cache"), arg("first"), arg("caller"));
    m.def("rope", &rope, arg("x"), arg("cosine"), arg("sine"), arg("first"), arg("caller"));
}

}  // namespace smolvla::bindings
