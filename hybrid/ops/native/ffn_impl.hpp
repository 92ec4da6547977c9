// The sparse feed-forward operator in its two halves: the products of rows, then their weighted sum by columns.
#pragma once

#include "sum_impl.hpp"

namespace {

// The rows that T tokens from t on need, of the tile that begins at `first` among `count` active ones, and in their order
// those of the next. A token's factor is zero for a row that only its neighbours need, which changes no bit of its sum.
template <int T>
inline void fill(const FfnCall& call, const Active& active, int64_t first, int64_t count, int t, Tile<T>& out) {
  const int64_t down = (call.gated ? 2 : 1) * call.vector_bytes, last = smaller(first + tile, count);
  const int tokens = call.in.tokens;
  const uint32_t wanted = ((1u << T) - 1) << t;
  out.count = 0;
  for (int64_t i = first; i < last; ++i) {
    if (tokens > 1 && !(active.sets[i] & wanted)) continue;
    out.rows[out.count] = call.rows + active.rows[i] * call.stride_bytes + down;
    out.next[out.count] = call.rows + active.rows[smaller(i + tile, count - 1)] * call.stride_bytes + down;
    for (int k = 0; k < T; ++k)
      out.factors[out.count][k] = t + k < tokens ? active.values[i * tokens + t + k] : 0;
    ++out.count;
  }
}

// Bit c of byte r becomes bit r of byte c (Warren, Hacker's Delight, 7-3).
inline uint64_t transposed(uint64_t bits) {
  uint64_t t = (bits ^ bits >> 7) & 0x00aa00aa00aa00aa;
  bits ^= t ^ t << 7;
  t = (bits ^ bits >> 14) & 0x0000cccc0000cccc;
  bits ^= t ^ t << 14;
  t = (bits ^ bits >> 28) & 0x00000000f0f0f0f0;
  return bits ^ t ^ t << 28;
}

// Some active rows, of which token after token takes its own, and those that follow, which are asked for meanwhile.
class Window {
 public:
  Window(const FfnCall& call, const Active& active, int64_t first, int64_t count)
      : active_(active),
        tokens_(call.in.tokens),
        first_(first),
        size_(static_cast<int>(smaller(window, count - first))) {
    const int64_t down = (call.gated ? 2 : 1) * call.vector_bytes;
    for (int i = 0; i < size_; ++i) {
      rows_[i] = call.rows + active.rows[first + i] * call.stride_bytes + down;
      next_[i] = call.rows + active.rows[smaller(first + window + i, count - 1)] * call.stride_bytes + down;
      __builtin_prefetch(active.values + smaller(first + window + i, count - 1) * tokens_);
    }
    for (int i = 0; i < size_; i += 8) {
      uint64_t low = 0, high = 0;  // of eight rows, a byte for each
      for (int r = 0; r < 8 && i + r < size_; ++r) {
        const uint64_t set = active.sets[first + i + r];
        low |= (set & 0xff) << 8 * r, high |= set >> 8 << 8 * r;
      }
      low = transposed(low), high = transposed(high);
      for (int t = 0; t < 8; ++t) {
        own_[t] |= (low >> 8 * t & 0xff) << i;
        own_[8 + t] |= (high >> 8 * t & 0xff) << i;
      }
    }
  }

  void fill(int t, Tile<1>& out) {
    int n = 0;
    for (uint64_t left = own_[t]; left; left &= left - 1, ++n) {
      const int i = __builtin_ctzll(left);
      out.rows[n] = rows_[i];
      out.factors[n][0] = active_.values[(first_ + i) * tokens_ + t];
      out.next[n] = next_[asked_];
      asked_ = asked_ + 1 < size_ ? asked_ + 1 : 0;
    }
    out.count = n;
  }

 private:
  const Active& active_;
  int tokens_;
  int64_t first_;
  int size_;
  int asked_ = 0;
  Bytes rows_[window], next_[window];
  uint64_t own_[max_tokens] = {};  // of each token its rows, a bit for each
};

// Whether tokens have most of some rows in common, so that each is widened once for several of them. Else each takes its own.
inline bool shared(const uint16_t* sets, int64_t count, int tokens) {
  int64_t pairs = 0;
  for (int64_t i = 0; i < count; ++i) pairs += __builtin_popcount(sets[i]);
  return 2 * pairs > tokens * count;
}

// Calls add(T, t, rows) for tile after tile of the active rows, for T tokens from t on and the rows that they need. Rows lie
// in order of frequency: the first are most tokens', the others few tokens' each.
template <class Simd, class Add>
inline void by_tiles(const FfnCall& call, const Active& active, int64_t count, const Add& add) {
  const int tokens = call.in.tokens;
  for (int64_t first = 0; first < count; first += window) {
    const int64_t last = smaller(first + window, count);
    if (tokens == 1 || shared(active.sets + first, last - first, tokens)) {
      for (int64_t i = first; i < last; i += tile)
        by_tokens<Simd::tokens_of_sums>(tokens, [&](auto T, int t) {
          Tile<T> rows;
          fill<T>(call, active, i, count, t, rows);
          if (rows.count) add(T, t, rows);
        });
      continue;
    }
    Window at(call, active, first, count);
    for (int t = 0; t < tokens; ++t) {
      Tile<1> rows;
      at.fill(t, rows);
      if (rows.count) add(std::integral_constant<int, 1>(), t, rows);
    }
  }
}

template <class Simd, Format format>
void sum_halves(const FfnCall& call, const Active& active, int64_t count, int64_t first, int64_t last, float* y) {
  const int64_t width = call.in.width, from = first * unit_columns, to = smaller(last * unit_columns, width);
  for (int t = 0; t < call.in.tokens; ++t) memset(y + t * width + from, 0, (to - from) * sizeof(float));
  by_tiles<Simd>(call, active, count, [&](auto T, int t, const auto& rows) {
    float* sums[T];
    for (int k = 0; k < T; ++k) sums[k] = y + smaller(t + k, call.in.tokens - 1) * width;
    add_halves<Simd, format, T>(rows, sums, from, to);
  });
}

template <class Simd, Format format>
void sum_blocks(const FfnCall& call, const Active& active, int64_t count, int64_t first, int64_t last, float* y) {
  constexpr int units = 8, size = (parts<format>() + 1) * hybrid::group_blocks;
  const int64_t width = call.in.width;
  for (; first < last; first += units) {
    const int some = static_cast<int>(smaller(units, last - first));
    Unit at[units];
    for (int u = 0; u < some; ++u) at[u] = unit_at<format>(first + u, width);
    float sums[max_tokens + 1][units * size];  // one more, for a group that is short of a token
    memset(sums, 0, (call.in.tokens + 1) * sizeof sums[0]);
    by_tiles<Simd>(call, active, count, [&](auto T, int t, const auto& rows) {
      constexpr int S = T == 1 ? words_together<Simd, format>() : 1;
      for (int u = 0; u < some;) {
        float* const to = sums[t] + u * size;
        if (u + S <= some && at[u].first_block == at[u + S - 1].first_block) {
          add_units<Simd, format, T, S>(rows, at[u], width, to, units * size);
          u += S;
        } else {
          add_units<Simd, format, T, 1>(rows, at[u++], width, to, units * size);
        }
      }
    });
    for (int t = 0; t < call.in.tokens; ++t)
      for (int u = 0; u < some; ++u) spread<Simd, format>(at[u], sums[t] + u * size, y + t * width);
  }
}

template <class Simd, Format format>
void ffn_columns(const FfnCall& call, Active active, int64_t count, int64_t first, int64_t last, float* y) {
  if constexpr (in_blocks(format)) sum_blocks<Simd, format>(call, active, count, first, last, y);
  else sum_halves<Simd, format>(call, active, count, first, last, y);
}

}  // namespace
