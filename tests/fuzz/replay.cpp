// Kept inputs, without a fuzzer: replay FILE... prints what each was refused with. It ends with a
// sanitizer's report or an uncaught exception where the fuzzer would.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

std::string refusal_of(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "replay: expected files, got none\n");
        return 2;
    }
    for (int i = 1; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        if (!file) {
            std::fprintf(stderr, "replay: cannot read %s\n", argv[i]);
            return 2;
        }
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        const std::string refusal =
            refusal_of(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
        std::printf("%s: %s\n", argv[i], refusal.empty() ? "loads" : refusal.c_str());
    }
    return 0;
}
