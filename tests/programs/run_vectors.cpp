// Run the native code, without Python, on the cases of a file and check the results in memory: run_vectors LIBRARY
// FILE.
//
// tests/support/native_vectors.py writes the file and describes its format. A case is a memory image: segments,
// positions of addresses in them, functions to call in turn, and the expected numbers. Only the file describes kernels,
// so this program does not depend on them.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

[[noreturn]] void stop(const std::string &problem) {
    std::fprintf(stderr, "%s\n", problem.c_str());
    std::exit(2);
}

using Function = int32_t (*)(const void *);

Function find_function(const char *library, const std::string &name) {
#if defined(_WIN32)
    static const HMODULE handle = LoadLibraryA(library);
    if (handle == nullptr) stop("cannot load the library: error " + std::to_string(GetLastError()));
    void *found = reinterpret_cast<void *>(GetProcAddress(handle, name.c_str()));
#else
    static void *const handle = dlopen(library, RTLD_NOW);
    if (handle == nullptr) stop(dlerror());
    void *found = dlsym(handle, name.c_str());
#endif
    if (found == nullptr) stop("the library has no " + name);
    return reinterpret_cast<Function>(found);
}

class Reader {
  public:
    explicit Reader(const char *path) {
        std::FILE *file = std::fopen(path, "rb");
        if (file == nullptr) stop(std::string("cannot read ") + path);
        char block[1 << 16];
        for (size_t count; (count = std::fread(block, 1, sizeof block, file)) > 0;)
            bytes_.insert(bytes_.end(), block, block + count);
        std::fclose(file);
    }

    void read(void *to, int64_t count) {
        if (count < 0 || count > static_cast<int64_t>(bytes_.size()) - at_) stop("the file ends too early");
        std::memcpy(to, bytes_.data() + at_, count);
        at_ += count;
    }

    int64_t integer() {
        int64_t value;
        read(&value, sizeof value);
        return value;
    }

    double real() {
        double value;
        read(&value, sizeof value);
        return value;
    }

    std::string text() {
        std::string value(integer(), ' ');
        read(&value[0], value.size());
        return value;
    }

  private:
    std::vector<char> bytes_;
    int64_t at_ = 0;
};

// Bytes followed by a guard, which no kernel may change
struct Segment {
    static constexpr int64_t kGuard = 256;
    int64_t size;
    std::vector<char> bytes;

    explicit Segment(Reader &file) : size(file.integer()), bytes(size + kGuard, '\x5a') { file.read(bytes.data(), size); }

    bool intact() const {
        for (int64_t i = size; i < size + kGuard; ++i)
            if (bytes[i] != '\x5a') return false;
        return true;
    }
};

// Return the largest error of a check, relative to the largest expected number, or NaN if a number is NaN
double relative_error(const Segment &segment, Reader &file, int64_t offset, int64_t count, bool is_double) {
    double error = 0, largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        double actual, expected = file.real();
        if (is_double) {
            std::memcpy(&actual, segment.bytes.data() + offset + i * 8, 8);
        } else {
            float value;
            std::memcpy(&value, segment.bytes.data() + offset + i * 4, 4);
            actual = value;
        }
        const double difference = std::fabs(actual - expected);
        if (!(difference <= error)) error = difference;
        if (std::isnan(difference)) return difference;
        largest = std::fmax(largest, std::fabs(expected));
    }
    return error / std::fmax(largest, 1e-30);
}

// Run the next case and return whether all its numbers are right
bool run_case(Reader &file, const char *library) {
    const std::string name = file.text();
    std::vector<Segment> segments;
    for (int64_t left = file.integer(); left > 0; --left) segments.emplace_back(file);
    for (int64_t left = file.integer(); left > 0; --left) {
        const int64_t segment = file.integer(), position = file.integer(), target = file.integer(), offset = file.integer();
        const void *address = segments.at(target).bytes.data() + offset;
        std::memcpy(segments.at(segment).bytes.data() + position, &address, sizeof address);
    }
    bool right = true;
    for (int64_t left = file.integer(); left > 0; --left) {
        const std::string function = file.text();
        const Segment &problem = segments.at(file.integer());
        if (find_function(library, "mamba_mis_" + function)(problem.bytes.data()) != 0) {
            std::printf("%s: %s fails\n", name.c_str(), function.c_str());
            right = false;
        }
    }
    double worst = 0;
    for (int64_t left = file.integer(); left > 0; --left) {
        const std::string what = file.text();
        const int64_t segment = file.integer(), offset = file.integer(), count = file.integer();
        const bool is_double = file.integer() != 0;
        const double tolerance = file.real();
        const double error = relative_error(segments.at(segment), file, offset, count, is_double);
        if (!(error <= tolerance)) {
            std::printf("%s: %s is off by %.1e\n", name.c_str(), what.c_str(), error);
            right = false;
        }
        worst = std::fmax(worst, error);
    }
    for (const Segment &segment : segments)
        if (!segment.intact()) {
            std::printf("%s: memory after a tensor was changed\n", name.c_str());
            right = false;
        }
    if (right) std::printf("%s: right, off by at most %.1e\n", name.c_str(), worst);
    return right;
}

}  // namespace

int main(int count, char **arguments) {
    static_assert(sizeof(void *) == 8, "structs are those of 64-bit machines");
    if (count != 3) stop("run_vectors LIBRARY FILE");
    Reader file(arguments[2]);
    int64_t wrong = 0;
    const int64_t cases = file.integer();
    for (int64_t i = 0; i < cases; ++i) wrong += !run_case(file, arguments[1]);
    std::printf("%d cases, %d wrong\n", static_cast<int>(cases), static_cast<int>(wrong));
    return wrong != 0;
}
