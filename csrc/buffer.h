// Scratch memory of the kernels.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

// Zero-initialized memory, aligned to whole vectors and cache lines: a load across two lines costs twice as much.
template <class S>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t count)
        : data_(static_cast<S *>(::operator new(count * sizeof(S), std::align_val_t(kAlignment)))) {
        std::memset(static_cast<void *>(data_), 0, count * sizeof(S));
    }
    Buffer(Buffer &&other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t(kAlignment)); }

    operator S *() const { return data_; }

  private:
    static constexpr size_t kAlignment = 64;
    S *data_ = nullptr;
};
