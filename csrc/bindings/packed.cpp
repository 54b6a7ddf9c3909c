// The packed cache for smolvla_edge/packed_cache.py.
#include <pybind11/stl.h>

#include "bindings/engine.h"
#include "bindings/gil.h"
#include "runtime/threads.h"

namespace smolvla::bindings {
namespace {

using Image = std::shared_ptr<PackedImage>;  // pybind11 holds no pointers to const

// -> (status, why, image or None)
std::tuple<std::string, std::string, Image> open_packed(const std::string& path,
                                                        const std::string& layout,
                                                        const std::string& compute,
                                                        const std::string& bundle,
                                                        const std::string& config, int threads) {
    static const char* const names[] = {"hit", "absent", "stale", "damaged"};
    if (threads < 0 || threads > kMaxThreads)
        fail(ErrorKind::backend, "threads must be 0 (automatic) to %d, got %d", kMaxThreads,
             threads);
    PackedImage::Found found;
    {
        GilRelease release;
        ThreadPool pool(threads > 0 ? threads : default_threads());
        found = PackedImage::open(path, {layout, compute, bundle, config}, pool);
    }
    return {names[static_cast<int>(found.status)], found.why,
            std::const_pointer_cast<PackedImage>(found.image)};
}

}  // namespace

std::shared_ptr<const PackedImage> image_of(const py::object& image) {
    if (image.is_none()) return nullptr;
    try {
        return image.cast<Image>();
    } catch (const py::cast_error&) {  // of another type, or made without __init__
        fail(ErrorKind::backend, "packed: expected an image that open_packed found, got %s",
             py::str(py::type::of(image)).cast<std::string>().c_str());
    }
}

void bind_packed(py::module_& m) {
    using py::arg;
    py::class_<PackedImage, Image>(m, "PackedImage", "A packed cache that is mapped and whole.")
        .def_property_readonly("bytes", [](const Image& image) { return image->bytes(); });
    m.def("open_packed", &open_packed, arg("path"), arg("layout"), arg("compute"), arg("bundle"),
          arg("config"), arg("threads") = 0);
    m.def(
        "packed_layout",
        [](const std::string& isa, const std::string& compute) {
            return packed_layout(isa, parse_compute(compute));
        },
        arg("isa") = "", arg("compute") = "float32");
}

}  // namespace smolvla::bindings
