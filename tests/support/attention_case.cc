#include "tests/support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/attention_options.h"
#include "core/reference_attention.h"
#include "tests/support/numbers.h"
#include "tests/support/tolerance.h"

namespace attnd::testing {
namespace {

AttentionProblem MakeProblem(const CaseShape& shape) {
  const CaseSpecs specs = SpecsOf(shape);
  return AttentionProblem::Create(specs.query, specs.key, specs.value,
                                  shape.options, shape.outputs)
      .value();
}

// --- as C++ ------------------------------------------------------------------

std::string Cpp(int64_t x) { return absl::StrCat(x); }
std::string Cpp(bool x) { return x ? "true" : "false"; }
std::string Cpp(float x) {
  return std::isfinite(x) ? absl::StrFormat("%aF", x)
         : x < 0          ? "-INFINITY"
                          : "INFINITY";
}

// "TOP_LEFT" is kTopLeft, and "BF16" is kBF16.
template <typename Enum>
std::string Cpp(const char* type, Enum x) {
  std::string cpp = absl::StrCat(type, "::k");
  for (const absl::string_view word : absl::StrSplit(NameOf(x), '_')) {
    const bool digits = word.find_first_of("0123456789") != word.npos;
    absl::StrAppend(&cpp, word.substr(0, 1),
                    digits ? std::string(word.substr(1))
                           : absl::AsciiStrToLower(word.substr(1)));
  }
  return cpp;
}
std::string Cpp(DataType x) { return Cpp("DataType", x); }
std::string Cpp(Layout x) { return Cpp("Layout", x); }
std::string Cpp(Causal x) { return Cpp("Causal", x); }
std::string Cpp(Precision x) { return Cpp("Precision", x); }
template <typename T>
std::string Cpp(const std::vector<T>& list) {
  return absl::StrCat(
      "{",
      absl::StrJoin(list, ", ",
                    [](std::string* out, const T& x) { out->append(Cpp(x)); }),
      "}");
}
std::string Cpp(const TensorSpec& x) {
  return absl::StrCat("TensorSpec{.dtype = ", Cpp(x.dtype),
                      ", .shape = ", Cpp(x.shape), "}");
}
template <typename T>
std::string Cpp(const std::optional<T>& x) {
  return Cpp(*x);
}

// A braced list of the members that differ from those of a new object.
class Initialiser {
 public:
  template <typename Member>
  Initialiser& Add(const char* name, const Member& x, const Member& fresh) {
    if (Differs(x, fresh)) {
      items_.push_back(absl::StrCat(".", name, " = ", Cpp(x)));
    }
    return *this;
  }
  Initialiser& AddText(const std::string& text) {
    items_.push_back(text);
    return *this;
  }
  std::string ToString() const {
    return absl::StrCat("{", absl::StrJoin(items_, ", "), "}");
  }

 private:
  template <typename M>
  static bool Differs(const M& a, const M& b) {
    return a != b;
  }
  static bool Differs(const std::optional<TensorSpec>& a,
                      const std::optional<TensorSpec>& b) {
    return a.has_value() != b.has_value();
  }

  std::vector<std::string> items_;
};

std::string Cpp(const AttentionOptions& options) {
  Initialiser list;
  ForEachOption([&](const char* name, auto member, const auto&...) {
    const AttentionOptions fresh;
    list.Add(name, member(options), member(fresh));
  });
  return list.ToString();
}

std::string Cpp(const OutputOptions& outputs) {
  const OutputOptions fresh;
  return Initialiser()
      .Add("return_lse", outputs.return_lse, fresh.return_lse)
      .Add("output_dtype", outputs.output_dtype, fresh.output_dtype)
      .ToString();
}

// --- draws -------------------------------------------------------------------

class Draw {
 public:
  explicit Draw(std::mt19937_64& rng) : rng_(rng) {}

  int64_t Below(int64_t n) {
    return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n));
  }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  int64_t UpTo(int64_t n) { return Below(n + 1); }

  int64_t Length(int64_t max) {
    if (OneIn(2)) return std::min(max, 1 + Below(9));
    // There are only few powers of two below a large `max`.
    if (max > 1000) return 1 + Below(max);
    int64_t power = 16;
    while (power * 2 <= max && Below(3) != 0) power *= 2;
    return std::clamp<int64_t>(power - 1 + Below(3), 1, max);
  }

  template <typename T, size_t n>
  T OneOf(const T (&choices)[n]) {
    return choices[Below(n)];
  }

  DataType Type() {
    return OneOf({DataType::kF32, DataType::kF16, DataType::kBF16});
  }

  // Returns a shape that broadcasts to `full`.
  std::vector<int64_t> Broadcast(std::vector<int64_t> full) {
    for (int64_t& extent : full) {
      if (OneIn(3)) extent = 1;
    }
    full.erase(full.begin(), full.begin() + static_cast<std::ptrdiff_t>(
                                                OneIn(2) ? 0 : Below(5)));
    return full;
  }

  // Returns a number between -size and size, and sometimes one that is far
  // outside.
  int64_t Offset(int64_t size) {
    if (OneIn(20)) return OneOf({-1, 1}) * Visibility::kMaxPosition;
    return UpTo(2 * size) - size;
  }

 private:
  std::mt19937_64& rng_;
};

// Sets some of the options that take any number of a range.
void DrawNumbers(Draw& draw, AttentionOptions& options) {
  ForEachOption([&](const char*, auto member, const char*, auto... values) {
    if constexpr (sizeof...(values) > 0) {
      if (draw.OneIn(4)) member(options) = draw.OneOf({values...});
    }
  });
}

void DrawTypes(Draw& draw, CaseShape& shape) {
  if (draw.OneIn(2)) return;
  shape.query_dtype = draw.Type();
  shape.key_dtype = draw.OneIn(2) ? draw.Type() : shape.query_dtype;
  shape.value_dtype = draw.OneIn(2) ? draw.Type() : shape.query_dtype;
  if (draw.OneIn(3)) shape.outputs.output_dtype = draw.Type();
  shape.options.precision = draw.OneOf(
      {Precision::kAuto, Precision::kAuto, Precision::kF32, Precision::kBF16});
}

// Draws entries with long prompts, with single queries, and without rows or
// keys.
void DrawRagged(Draw& draw, CaseShape& shape) {
  std::vector<int64_t> q = {0};
  std::vector<int64_t> k = {0};
  for (int64_t entries = draw.UpTo(5); entries > 0; --entries) {
    q.push_back(q.back() + (draw.OneIn(3)   ? 1
                            : draw.OneIn(8) ? 0
                                            : draw.Length(shape.q_len)));
    k.push_back(k.back() + (draw.OneIn(8) ? 0 : draw.Length(shape.kv_len)));
  }
  shape.q_len = q.back();
  shape.kv_len = k.back();
  shape.options.cu_seqlens_q = std::move(q);
  shape.options.cu_seqlens_k = std::move(k);
}

// `batch` is the number of entries.
void DrawVisibility(Draw& draw, int64_t batch, CaseShape& shape) {
  AttentionOptions& o = shape.options;
  const int64_t longest = std::max(shape.q_len, shape.kv_len);
  if (draw.OneIn(4)) {
    const int64_t count = draw.OneIn(2) ? 1 : batch;
    for (int64_t b = 0; b < count; ++b) {
      o.query_offsets.push_back(draw.Offset(longest));
    }
  }
  const auto window = [&]() -> int64_t {
    if (draw.OneIn(10)) return std::numeric_limits<int64_t>::max();
    return draw.OneIn(2) ? draw.UpTo(9) : draw.UpTo(longest);
  };
  if (draw.OneIn(3)) o.window_left = window();
  if (draw.OneIn(3)) o.window_right = window();
  if (!o.cu_seqlens_q.empty()) return;
  const auto lengths = [&](std::vector<int64_t>& to, int64_t length) {
    if (!draw.OneIn(4)) return;
    for (int64_t b = 0; b < batch; ++b) {
      to.push_back(draw.OneIn(4) ? length : draw.UpTo(length));
    }
  };
  lengths(o.query_lengths, shape.q_len);
  lengths(o.key_lengths, shape.kv_len);
  const std::vector<int64_t> full = {batch, shape.num_kv_heads * shape.group,
                                     shape.q_len, shape.kv_len};
  if (draw.OneIn(3)) {
    o.bias = TensorSpec{.dtype = draw.Type(), .shape = draw.Broadcast(full)};
  }
  if (draw.OneIn(3)) {
    o.mask = TensorSpec{DataType::kBool, draw.Broadcast(full)};
  }
}

void DrawScores(Draw& draw, std::mt19937_64& rng, CaseShape& shape) {
  AttentionOptions& o = shape.options;
  const int64_t q_heads = shape.num_kv_heads * shape.group;
  std::normal_distribution<float> normal;
  if (draw.OneIn(4)) {
    for (int64_t h = 0; h < q_heads; ++h) {
      o.alibi_slopes.push_back(normal(rng) * draw.OneOf({0.01F, 0.3F}));
    }
    // A negative slope gives distant keys a large score. With a distance of
    // 2^60 that score would be too large.
    for (int64_t& offset : o.query_offsets) {
      offset = std::clamp<int64_t>(offset, -1000, 1000);
    }
  }
  if (draw.OneIn(4)) {
    for (int64_t h = 0; h < q_heads; ++h) {
      o.sink_logits.push_back(draw.OneIn(6) ? -kInfinity : 2 * normal(rng));
    }
  }
}

}  // namespace

CaseSpecs SpecsOf(const CaseShape& s) {
  const auto spec = [&](DataType type, int64_t h, int64_t n, int64_t d) {
    if (s.rank == 2) return TensorSpec{.dtype = type, .shape = {n, d}};
    std::vector<int64_t> shape = s.options.layout == Layout::kBhsd
                                     ? std::vector<int64_t>{s.batch, h, n, d}
                                     : std::vector<int64_t>{s.batch, n, h, d};
    if (s.rank == 3) shape.erase(shape.begin());
    return TensorSpec{.dtype = type, .shape = shape};
  };
  return {.query = spec(s.query_dtype, s.num_kv_heads * s.group, s.q_len,
                        s.head_dim),
          .key = spec(s.key_dtype, s.num_kv_heads, s.kv_len, s.head_dim),
          .value = spec(s.value_dtype, s.num_kv_heads, s.kv_len, s.v_head_dim)};
}

std::string CaseShape::ToString() const {
  const CaseShape fresh;
  return Initialiser()
      .Add("batch", batch, fresh.batch)
      .Add("num_kv_heads", num_kv_heads, fresh.num_kv_heads)
      .Add("group", group, fresh.group)
      .Add("q_len", q_len, fresh.q_len)
      .Add("kv_len", kv_len, fresh.kv_len)
      .Add("head_dim", head_dim, fresh.head_dim)
      .Add("v_head_dim", v_head_dim, fresh.v_head_dim)
      .AddText(absl::StrCat(".rank = ", rank))
      .Add("query_dtype", query_dtype, fresh.query_dtype)
      .Add("key_dtype", key_dtype, fresh.key_dtype)
      .Add("value_dtype", value_dtype, fresh.value_dtype)
      .AddText(absl::StrCat(".options = ", Cpp(options)))
      .AddText(absl::StrCat(".outputs = ", Cpp(outputs)))
      .ToString();
}

AttentionCase::AttentionCase(const CaseShape& shape, uint64_t seed,
                             float query_deviation)
    : shape_(shape), seed_(seed), problem_(MakeProblem(shape)) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  const auto fill = [&](TypedArray& to, DataType type, int64_t bytes,
                        float factor) {
    to = TypedArray(type, bytes);
    for (int64_t i = 0; i < to.size(); ++i) to.Set(i, normal(rng) * factor);
  };
  const AttentionParams& p = problem_.params();
  fill(query, p.query_dtype, problem_.query_bytes(), query_deviation);
  fill(key, p.key_dtype, problem_.key_bytes(), 1);
  fill(value, p.value_dtype, problem_.value_bytes(), 1);
  fill(bias, p.bias_dtype, problem_.bias_bytes(), 1);
  for (int64_t i = 0; i < bias.size(); ++i) {
    if (rng() % 8 == 0) bias.Set(i, -kInfinity);
  }
  mask.resize(static_cast<size_t>(problem_.mask_bytes()));
  // Every byte except 0 means true.
  for (std::byte& x : mask) {
    x = rng() % 4 == 0 ? std::byte{0} : static_cast<std::byte>(1 + rng() % 255);
  }
  ClearOutputs();
}

AttentionBuffers AttentionCase::buffers() {
  return {.query = query.data(),
          .key = key.data(),
          .value = value.data(),
          .output = output.data(),
          .lse = lse.data(),
          .bias = bias.data(),
          .mask = mask.data()};
}

void AttentionCase::ClearOutputs() {
  output = TypedArray(problem_.params().output_dtype, problem_.output_bytes());
  output.Fill(kNan);
  lse.assign(static_cast<size_t>(problem_.lse_bytes()) / sizeof(float), kNan);
}

void AttentionCase::Scale(float factor) {
  for (TypedArray* const tensor : {&key, &value}) {
    for (int64_t at = 0; at < tensor->size(); ++at) {
      tensor->Set(at, (*tensor)[at] * factor);
    }
  }
}

AttentionCase::Expected AttentionCase::Expect() const {
  const AttentionParams& p = problem_.params();
  // Products of bf16 use inputs that are rounded to bf16.
  TypedArray rounded[] = {query, key, value};
  if (p.precision == Precision::kBF16) {
    for (TypedArray& array : rounded) {
      for (int64_t i = 0; i < array.size(); ++i) {
        array.Set(i, RoundTo(DataType::kBF16, array[i]));
      }
    }
  }
  const AttentionBuffers inputs = {.query = rounded[0].data(),
                                   .key = rounded[1].data(),
                                   .value = rounded[2].data(),
                                   .bias = bias.data(),
                                   .mask = mask.data()};
  Expected expected;
  expected.output.resize(static_cast<size_t>(output.size()));
  expected.output_bound.resize(expected.output.size());
  expected.lse.resize(lse.size());
  expected.lse_bound.resize(lse.size());
  const auto out_view = problem_.OutputView(expected.output.data());
  const auto bound_view = problem_.OutputView(expected.output_bound.data());
  const auto value_view = problem_.ValueView(rounded[2].data());
  for (int64_t b = 0; b < p.batch; ++b) {
    const BatchEntry entry = problem_.visibility().Entry(b);
    for (int64_t h = 0; h < p.num_q_heads; ++h) {
      for (int64_t i = 0; i < entry.q_len; ++i) {
        const int64_t seq = entry.q_begin + i;
        const auto lse_at = static_cast<size_t>(
            (entry.batch * p.num_q_heads + h) * p.q_len + seq);
        double* const out = out_view.Row(entry.batch, h, seq);
        const ReferenceRow row = ReferenceWeights(problem_, inputs, b, h, i);
        ReferenceOutput(problem_, inputs, b, h, row, out);
        expected.lse[lse_at] = row.lse;
        double largest = 0;
        for (const ReferenceKey& seen : row.keys) {
          const int64_t first = value_view.Offset(
              entry.batch, h / p.HeadsPerGroup(), entry.kv_begin + seen.index);
          for (int64_t d = 0; d < p.v_head_dim; ++d) {
            const double v = std::abs(double{rounded[2][first + d]});
            if (std::isfinite(v)) largest = std::max(largest, v);
          }
        }
        const double sink = p.has_sinks
                                ? problem_.sink_logits()[static_cast<size_t>(h)]
                                : -std::numeric_limits<double>::infinity();
        const RowBound bound = BoundOf(p, row, sink);
        expected.lse_bound[lse_at] =
            // Without keys, lse is exactly the sink.
            row.keys.empty() ? 0 : bound.lse;
        double* const out_bound = bound_view.Row(entry.batch, h, seq);
        for (int64_t d = 0; d < p.v_head_dim; ++d) {
          out_bound[d] = row.keys.empty()
                             ? 0
                             : bound.output * largest +
                                   RoundingError(p.output_dtype, out[d]);
        }
      }
    }
  }
  return expected;
}

std::string AttentionCase::Compare(const Expected& expected) const {
  double worst = 1;
  std::string report;
  const auto check = [&](const char* what, size_t index, double got,
                         double want, double bound) {
    if (std::isnan(want) ? std::isnan(got) : got == want) return;
    const double error = std::abs(got - want) / bound;
    // The comparison is false for NaN, so NaN is reported.
    if (error <= worst) return;
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    report = absl::StrCat(what, "[", index, "] is ", got, ", expected ", want,
                          ", off by ", error, " times the bound of ", bound,
                          "; AttentionCase c(", ToString(), ")");
  };
  for (size_t i = 0; i < expected.output.size(); ++i) {
    check("output", i, double{output[static_cast<int64_t>(i)]},
          expected.output[i], expected.output_bound[i]);
  }
  for (size_t i = 0; problem_.params().return_lse && i < lse.size(); ++i) {
    check("lse", i, double{lse[i]}, expected.lse[i], expected.lse_bound[i]);
  }
  return report;
}

std::string AttentionCase::ToString() const {
  return absl::StrCat("CaseShape", shape_.ToString(), ", ", seed_, "U");
}

CaseShape RandomShape(std::mt19937_64& rng, int64_t max_len) {
  Draw draw(rng);
  CaseShape shape;
  shape.batch = 1 + draw.Below(2);
  shape.num_kv_heads = 1 + draw.Below(3);
  shape.group = 1 + draw.Below(4);
  shape.q_len = draw.Length(max_len);
  shape.kv_len = draw.Length(max_len);
  shape.head_dim = draw.Length(160);
  shape.v_head_dim = draw.OneIn(2) ? shape.head_dim : draw.Length(160);
  shape.options.causal = static_cast<Causal>(draw.Below(3));
  shape.outputs.return_lse = true;
  if (draw.OneIn(4)) shape.options.block_size = 1 + draw.Below(300);
  if (draw.OneIn(4)) {
    shape.options.scale = static_cast<float>(draw.Below(5) - 2) / 4.0F;
  }
  if (draw.OneIn(4)) shape.options.temperature = 0.5F;
  return shape;
}

CaseShape RandomCase(std::mt19937_64& rng, int64_t max_q_len,
                     int64_t max_kv_len) {
  Draw draw(rng);
  CaseShape shape = RandomShape(rng, max_q_len);
  shape.kv_len = draw.Length(max_kv_len);
  shape.options.layout = draw.OneOf({Layout::kBhsd, Layout::kBshd});
  shape.outputs.return_lse = !draw.OneIn(4);
  const bool ragged = draw.OneIn(5);
  shape.rank = ragged          ? 3 - static_cast<int>(draw.OneIn(4))
               : draw.OneIn(3) ? 2 + static_cast<int>(draw.Below(3))
                               : 4;
  if (draw.OneIn(4)) shape.q_len = 1;
  if (draw.OneIn(40)) shape.q_len = 0;
  if (draw.OneIn(40)) shape.kv_len = 0;
  if (draw.OneIn(40)) shape.batch = 0;
  if (shape.rank < 4) shape.batch = 1;
  if (shape.rank == 2) shape.num_kv_heads = shape.group = 1;
  if (ragged) DrawRagged(draw, shape);
  DrawNumbers(draw, shape.options);
  DrawTypes(draw, shape);
  DrawVisibility(
      draw,
      ragged ? static_cast<int64_t>(shape.options.cu_seqlens_q.size()) - 1
             : shape.batch,
      shape);
  DrawScores(draw, rng, shape);
  return shape;
}

std::vector<CaseShape> SplitShapes() {
  std::vector<CaseShape> shapes;
  const auto add = [&](int64_t q_len, const AttentionOptions& options) {
    shapes.push_back({.q_len = q_len,
                      .kv_len = 5000,
                      .head_dim = 8,
                      .v_head_dim = 20,
                      .options = options});
    shapes.back().outputs.return_lse = true;
  };
  add(60, {.causal = Causal::kBottomRight});
  add(100, {.mask = TensorSpec{DataType::kBool, {5000}}});
  add(200, {.window_left = 4500});
  add(100, {});
  shapes.back().query_dtype = DataType::kBF16;
  shapes.back().key_dtype = DataType::kBF16;
  shapes.back().value_dtype = DataType::kBF16;
  add(1024, {.query_lengths = {200, 100}, .key_lengths = {5000, 4200}});
  shapes.back().batch = 2;
  return shapes;
}

}  // namespace attnd::testing
