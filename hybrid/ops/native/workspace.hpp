// Memory of the operators between two calls, kept and grown, so that a decode step allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace hybrid {

class Workspace {
 public:
  enum Slot { codes, scales, sums, rows, sets, values, counts, partials, hidden, logits, other, slots };

  // At least `count` elements, aligned to 64, valid until the slot is asked for more. Their contents are undefined.
  template <class T>
  T* get(Slot slot, int64_t count) {
    Buffer& buffer = buffers_[slot];
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > buffer.bytes) {
      buffer.memory.reset();
      buffer.bytes = 0;
      buffer.memory.reset(::operator new(bytes, std::align_val_t{64}));
      buffer.bytes = bytes;
    }
    return static_cast<T*>(buffer.memory.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    std::size_t bytes = 0;
  };
  Buffer buffers_[slots];
};

}  // namespace hybrid
