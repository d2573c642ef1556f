// The harness of tests/fuzz/fuzz_ctz.cpp without libFuzzer, for any compiler and emulated CPUs.
//
//   test_ctz --random COUNT SEED        inputs of random bytes
//   test_ctz FILE...                    inputs that were kept

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *bytes, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

bool passes(const Bytes &input, const std::string &name) {
    try {
        LLVMFuzzerTestOneInput(input.data(), input.size());
        return true;
    } catch (const std::exception &error) {
        std::printf("%s: %s\n", name.c_str(), error.what());
        return false;
    }
}

bool passes_random(int count, unsigned seed) {
    std::mt19937 random(seed);
    for (int number = 0; number < count; ++number) {
        Bytes input(64 + random() % 1024);
        for (std::uint8_t &byte : input)
            byte = static_cast<std::uint8_t>(random());
        if (!passes(input, "input " + std::to_string(number) + " of seed " + std::to_string(seed)))
            return false;
    }
    return true;
}

bool passes_file(const char *path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        std::printf("cannot read %s\n", path);
        return false;
    }
    return passes(Bytes(std::istreambuf_iterator<char>(file), {}), path);
}

}  // namespace

int main(int argc, char **argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() == 3 && arguments[0] == "--random") {
        const int count = std::atoi(argv[2]);
        if (!passes_random(count, static_cast<unsigned>(std::atoi(argv[3]))))
            return 1;
        std::printf("%d inputs: every decoder agrees with the page\n", count);
        return 0;
    }
    if (arguments.empty() || arguments[0].starts_with("-")) {
        std::fprintf(stderr, "test_ctz --random COUNT SEED | FILE...\n");
        return 2;
    }
    for (int n = 1; n < argc; ++n)
        if (!passes_file(argv[n]))
            return 1;
    std::printf("%zu inputs: every decoder agrees with the page\n", arguments.size());
    return 0;
}
