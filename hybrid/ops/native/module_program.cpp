// The binding of `Program`: what is recorded is checked when it is recorded, so that a run checks its step alone.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "checks.hpp"
#include "module.hpp"
#include "program.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using hybrid::array;
using hybrid::Pool;
using hybrid::Program;
using hybrid::require;

using MatrixArguments = std::tuple<uintptr_t, int64_t, int, int64_t, uintptr_t, uintptr_t>;

hybrid::Table table(uintptr_t weight, int64_t stride_bytes, int format, int64_t width) {
  const hybrid::Format known = hybrid::weight_format(format);
  hybrid::require_size(width, "width");
  hybrid::require_stride(stride_bytes, known, width, 1);
  return {hybrid::weights(weight, "weight"), stride_bytes, known, width};
}

hybrid::Pages pages(uintptr_t keys, uintptr_t values, int format, int64_t kv_heads, int64_t head_dim) {
  hybrid::require_size(kv_heads, "kv_heads");
  hybrid::require_size(head_dim, "head_dim");
  return {array<float>(keys, "keys"), array<float>(values, "values"), hybrid::page_format(format), kv_heads, head_dim};
}

void linear(Program& program, Pool& pool, uintptr_t x, int64_t width, const std::vector<MatrixArguments>& arguments) {
  require(!arguments.empty() && arguments.size() <= 8, "one to eight matrices share an input");
  std::vector<hybrid::Matrix> matrices;
  for (const auto& [weight, stride_bytes, format, out_features, bias, y] : arguments)
    matrices.push_back(hybrid::matrix(weight, stride_bytes, format, out_features, width, bias, array<float>(y, "y")));
  program.linear(pool, array<float>(x, "x"), width, matrices);
}

void norm(Program& program, bool centred, uintptr_t x, uintptr_t weight, uintptr_t bias, int64_t width,
          int64_t vectors, float eps, uintptr_t y) {
  hybrid::require_size(width, "width");
  hybrid::require_size(vectors, "vectors");
  program.norm({centred, array<float>(x, "x"), array<float>(weight, "weight"),
                hybrid::array_or_null<const float>(bias, "bias"), width, vectors, eps, array<float>(y, "y")});
}

hybrid::Matrix without_output(const MatrixArguments& matrix, int64_t in_features) {
  const auto& [weight, stride_bytes, format, out_features, bias, y] = matrix;
  static_cast<void>(y);
  return hybrid::matrix(weight, stride_bytes, format, out_features, in_features, bias, nullptr);
}

void predict(Program& program, Pool& pool, const std::optional<MatrixArguments>& fc1, bool rectified,
             const MatrixArguments& fc2, float threshold, uintptr_t neuron_ids, uintptr_t x, int64_t hidden,
             uintptr_t named) {
  const hybrid::Matrix first = fc1 ? without_output(*fc1, hidden) : hybrid::Matrix{};
  const hybrid::Predictor predictor = {first, rectified, without_output(fc2, fc1 ? first.out_features : hidden),
                                       threshold, array<const int32_t>(neuron_ids, "neuron_ids")};
  program.predict(pool, predictor, array<float>(x, "x"), hidden, array<uint8_t>(named, "named"));
}

void sparse_ffn(Program& program, Pool& pool, uintptr_t rows, int64_t stride_bytes, int64_t n_rows, int64_t hidden,
                int weight_format, bool gated, int activation, float cutoff, bool skip_inactive, uintptr_t bias,
                uintptr_t x, uintptr_t named, int64_t named_stride, bool more, uintptr_t y, uintptr_t counts,
                uintptr_t activations, int64_t activations_stride, uintptr_t tally, int64_t bucket_rows,
                int64_t first_row) {
  const hybrid::Bank bank =
      hybrid::bank(rows, stride_bytes, n_rows, hidden, weight_format, gated, activation, cutoff, skip_inactive, bias);
  require(!named || named_stride >= n_rows, "named_stride should be at least n_rows");
  program.sparse_ffn(pool, bank, array<float>(x, "x"), reinterpret_cast<const uint8_t*>(named), named_stride, more, array<float>(y, "y"),
                     array<int64_t>(counts, "counts"), hybrid::shown(activations, activations_stride, n_rows),
                     hybrid::tally(tally, bucket_rows, first_row));
}

void request(Program& program, uintptr_t rows, int64_t stride_bytes, int64_t row_bytes, int64_t n_rows, uintptr_t named,
             int64_t named_stride, hybrid::Lane* lane) {
  hybrid::require_size(n_rows, "n_rows");
  require(row_bytes >= 1 && row_bytes <= stride_bytes && stride_bytes <= hybrid::max_stride,
          "stride_bytes should hold a row");
  require(named_stride >= n_rows && named_stride <= hybrid::max_features, "named_stride should be at least n_rows");
  program.request({hybrid::weights(rows, "rows"), stride_bytes, row_bytes, n_rows,
                   array<const uint8_t>(named, "named"), named_stride},
                  lane);
}

void hand_over(Program& program, hybrid::Lane& lane, Program& far) {
  require(&program != &far, "a program cannot be handed over to itself");
  program.hand_over(lane, far);
}

// For the tests: an operator that fails as the number at `address` says when it is computed, 0 for not at all.
void fail(Program& program, uintptr_t address) {
  program.call([how = array<const int64_t>(address, "address")] {
    if (*how == 1) throw std::runtime_error("an operator failed, as a test wanted");
    if (*how == 2) throw std::bad_alloc();
  });
}

nb::dict seconds(const Program& program) {
  nb::dict all;
  for (int kind = 0; kind < Program::kinds; ++kind) {
    const auto known = static_cast<Program::Kind>(kind);
    all[Program::name(known)] = program.seconds(known);
  }
  return all;
}

// Returns the seconds it took.
double run(Program& program, int64_t tokens, uintptr_t ids, uintptr_t positions, uintptr_t blocks) {
  hybrid::require_tokens(tokens);
  const hybrid::Step step = {static_cast<int>(tokens), array<const int64_t>(ids, "ids"),
                             array<const int64_t>(positions, "positions"),
                             array<const int64_t* const>(blocks, "blocks")};
  const nb::gil_scoped_release released;
  const auto began = hybrid::Clock::now();
  hybrid::Interrupt signals = python_signals();
  program.run(step, &signals);
  return std::chrono::duration<double>(hybrid::Clock::now() - began).count();
}

// Kind, layer, pool, begin and end of each operator of the last run, in seconds of the clock that Python counts with.
nb::list notes(const Program& program) {
  const auto seconds = [](hybrid::Clock::time_point time) {
    return std::chrono::duration<double>(time.time_since_epoch()).count();
  };
  nb::list all;
  for (const Program::Note& note : program.notes())
    all.append(nb::make_tuple(Program::name(note.kind), note.layer, nb::cast(note.unit, nb::rv_policy::reference),
                              seconds(note.began), seconds(note.ended)));
  return all;
}

}  // namespace

void bind_program(nb::module_& m) {
  nb::class_<hybrid::Lane>(m, "Lane")
      .def(nb::init<>())
      .def("join", &hybrid::Lane::join, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Program>(m, "Program")
      .def(nb::init<>())
      .def("embed",
           [](Program& p, uintptr_t weight, int64_t stride_bytes, int weight_format, int64_t width, uintptr_t y) {
             p.embed(table(weight, stride_bytes, weight_format, width), array<float>(y, "y"));
           },
           "weight"_a, "stride_bytes"_a, "weight_format"_a, "width"_a, "y"_a)
      .def("add_positions",
           [](Program& p, uintptr_t weight, int64_t stride_bytes, int weight_format, int64_t width, int64_t offset,
              uintptr_t y) {
             p.add_positions(table(weight, stride_bytes, weight_format, width), offset, array<float>(y, "y"));
           },
           "weight"_a, "stride_bytes"_a, "weight_format"_a, "width"_a, "offset"_a, "y"_a)
      .def("angles",
           [](Program& p, uintptr_t frequencies, int64_t half, uintptr_t cosines, uintptr_t sines) {
             hybrid::require_size(half, "half");
             p.angles(array<float>(frequencies, "frequencies"), half, array<float>(cosines, "cosines"),
                      array<float>(sines, "sines"));
           },
           "frequencies"_a, "half"_a, "cosines"_a, "sines"_a)
      .def("norm", &norm, "centred"_a, "x"_a, "weight"_a, "bias"_a, "width"_a, "vectors"_a, "eps"_a, "y"_a)
      .def("linear", &linear, "pool"_a, "x"_a, "width"_a, "matrices"_a, nb::keep_alive<1, 2>())
      .def("rotate",
           [](Program& p, uintptr_t x, int64_t heads, int64_t head_dim, int64_t rotary, uintptr_t cosines,
              uintptr_t sines) {
             hybrid::require_size(heads, "heads");
             hybrid::require_size(head_dim, "head_dim");
             require(rotary >= 2 && rotary % 2 == 0 && rotary <= head_dim, "an even number of a head's values rotates");
             p.rotate(array<float>(x, "x"), heads, head_dim, rotary, array<float>(cosines, "cosines"),
                      array<float>(sines, "sines"));
           },
           "x"_a, "heads"_a, "head_dim"_a, "rotary"_a, "cosines"_a, "sines"_a)
      .def("store",
           [](Program& p, uintptr_t k, uintptr_t v, uintptr_t keys, uintptr_t values, int page_format,
              int64_t kv_heads, int64_t head_dim) {
             p.store(array<float>(k, "k"), array<float>(v, "v"), pages(keys, values, page_format, kv_heads, head_dim));
           },
           "k"_a, "v"_a, "keys"_a, "values"_a, "page_format"_a, "kv_heads"_a, "head_dim"_a)
      .def("attention",
           [](Program& p, Pool& pool, uintptr_t q, uintptr_t keys, uintptr_t values, int page_format, int64_t heads,
              int64_t kv_heads, int64_t head_dim, int64_t window, uintptr_t y) {
             require(kv_heads >= 1 && heads >= kv_heads && heads % kv_heads == 0, "heads should be multiples of kv_heads");
             require(window >= 0, "window should not be negative");
             p.attention(pool, array<float>(q, "q"), pages(keys, values, page_format, kv_heads, head_dim), heads, window, array<float>(y, "y"));
           },
           "pool"_a, "q"_a, "keys"_a, "values"_a, "page_format"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "window"_a,
           "y"_a, nb::keep_alive<1, 2>())
      .def("add",
           [](Program& p, uintptr_t a, uintptr_t b, int64_t width, uintptr_t y) {
             hybrid::require_size(width, "width");
             p.add(array<float>(a, "a"), array<float>(b, "b"), width, array<float>(y, "y"));
           },
           "a"_a, "b"_a, "width"_a, "y"_a)
      .def("add_vector",
           [](Program& p, uintptr_t vector, int64_t width, uintptr_t y) {
             hybrid::require_size(width, "width");
             p.add_vector(array<float>(vector, "vector"), width, array<float>(y, "y"));
           },
           "vector"_a, "width"_a, "y"_a)
      .def("predict", &predict, "pool"_a, "fc1"_a.none(), "rectified"_a, "fc2"_a, "threshold"_a, "neuron_ids"_a, "x"_a,
           "hidden"_a, "named"_a, nb::keep_alive<1, 2>())
      .def("sparse_ffn", &sparse_ffn, "pool"_a, "rows"_a, "stride_bytes"_a, "n_rows"_a, "hidden"_a, "weight_format"_a,
           "gated"_a, "activation"_a, "cutoff"_a, "skip_inactive"_a, "bias"_a, "x"_a, "named"_a, "named_stride"_a,
           "more"_a, "y"_a, "counts"_a, "activations"_a = 0, "activations_stride"_a = 0, "tally"_a = 0, "bucket_rows"_a = 1,
           "first_row"_a = 0, nb::keep_alive<1, 2>())
      .def("computed_by", &Program::computed_by, "pool"_a, nb::keep_alive<1, 2>())
      .def("hand_over", &hand_over, "lane"_a, "far"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def("wait", &Program::wait, "lane"_a, nb::keep_alive<1, 2>())
      .def("join", &Program::join, "lane"_a, nb::keep_alive<1, 2>())
      .def("request", &request, "rows"_a, "stride_bytes"_a, "row_bytes"_a, "n_rows"_a, "named"_a, "named_stride"_a,
           "lane"_a.none() = nb::none(), nb::keep_alive<1, 8>())
      .def_prop_ro("requested", &Program::requested)
      .def("_fail", &fail, "address"_a)
      .def("mark", &Program::mark, "layer"_a)
      .def("note", &Program::note, "wanted"_a)
      .def_prop_ro("notes", &notes)
      .def_prop_ro("seconds", &seconds)
      .def_prop_ro("overlap",
                   [](const Program& p) {
                     const Program::Overlap& o = p.overlap();
                     return std::make_tuple(o.near, o.far, o.wait, o.smaller, o.hidden);
                   })
      .def("run", &run, "tokens"_a, "ids"_a, "positions"_a, "blocks"_a);
}
