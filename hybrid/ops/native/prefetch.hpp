// Rows that are named are read from the drive into memory before they are computed.
#pragma once

#include <cstdint>

namespace hybrid {

// Rows of which tokens name some.
struct NamedRows {
  const unsigned char* rows;
  int64_t stride_bytes;
  int64_t row_bytes;  // of a row's vectors
  int64_t n_rows;
  const uint8_t* named;  // [tokens, n_rows], rows of tokens `named_stride` apart
  int64_t named_stride;
};

// Asks the system to read pages of mapped files that are not in memory, many at once, and does not wait. Pages that are
// touched instead are read one after the other, each with neighbours that nobody named.
class Request {
 public:
  explicit Request(const NamedRows& rows) : rows_(rows) {}

  // For the rows that some token names. Where all were in memory many times over, it looks ever less often.
  void run(int tokens);
  int64_t asked() const { return asked_; }  // bytes that the drive was to read, in all runs

 private:
  const NamedRows rows_;
  int64_t asked_ = 0;
  int64_t in_vain_ = 0;  // looks, one after the other, that found nothing missing
  int64_t skipped_ = 0;  // since the last look
};

// The same for all of a range; returns the bytes that the drive is to read for it.
int64_t ask_for(const unsigned char* from, const unsigned char* to);

}  // namespace hybrid
