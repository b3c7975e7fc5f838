#include "server/process/self_test.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/attention_options.h"
#include "base/half_float.h"
#include "base/status_macros.h"
#include "core/attention_problem.h"
#include "core/reference_attention.h"
#include "server/calls/random_floats.h"

namespace attnd::server {
namespace {

// Inputs are in [-1, 1), so the answers are, too. The rounding errors of sums
// of a few hundred f32 terms are ten times smaller than this. The errors of a
// wrong tile are larger.
constexpr double kTolerance = 1e-5;
// Gradients are sums over rows in addition.
constexpr double kBackwardTolerance = 1e-4;
// Half a unit in the last place of a number below 1 in the 16-bit type. For
// bf16, the same again, because the weights are rounded. The cases have few
// keys, so that their answers are large.
constexpr double kF16Tolerance = 5e-4;
constexpr double kBF16Tolerance = 6e-3;

struct Case {
  std::vector<int64_t> query;
  std::vector<int64_t> key;
  int64_t v_head_dim;
  AttentionOptions options;
  DataType dtype = DataType::kF32;
  double tolerance = kTolerance;
  std::optional<DataType> output_dtype = {};
};

// Sets every option that takes any number of a range, to the first value that
// the table of options has for it.
AttentionOptions WithNumbers(AttentionOptions options) {
  ForEachOption(
      [&options](const char*, auto member, const char*, const auto&... values) {
        if constexpr (sizeof...(values) > 0) {
          member(options) = std::get<0>(std::tie(values...));
        }
      });
  return options;
}

// The first cases have odd dimensions, grouped heads, incomplete tiles, and one
// row that sees many keys. The others make the engine choose other kernels:
// they have other types, options that change the scores, ragged batches or the
// other layout.
std::vector<Case> ForwardCases() {
  return {
      {{1, 2, 70, 64}, {1, 2, 130, 64}, 64, {}},
      {{2, 4, 33, 17}, {2, 2, 65, 17}, 5, {.causal = Causal::kTopLeft}},
      {{1, 6, 129, 128}, {1, 1, 97, 128}, 96, {.causal = Causal::kBottomRight}},
      {{1, 8, 1, 80}, {1, 2, 2500, 80}, 80, {}},
      {{1, 1, 9, 1}, {1, 1, 7, 1}, 1, {.causal = Causal::kBottomRight}},
      {{1, 2, 40, 33}, {1, 1, 300, 33}, 20, {}, DataType::kF16, kF16Tolerance},
      {{1, 2, 40, 34}, {1, 1, 31, 34}, 20, {}, DataType::kBF16, kBF16Tolerance},
      {{1, 4, 1, 64}, {1, 1, 31, 64}, 64, {}, DataType::kBF16, kBF16Tolerance},
      // Computes products in f32 on every machine.
      {{1, 2, 70, 64},
       {1, 2, 130, 64},
       64,
       {.precision = Precision::kF32},
       DataType::kBF16,
       kTolerance,
       DataType::kF32},
      {{1, 2, 110, 32},
       {1, 2, 130, 32},
       32,
       WithNumbers({.causal = Causal::kBottomRight,
                    .window_left = 40,
                    .alibi_slopes = {0.25F, 0.01F},
                    .sink_logits = {0.5F, -1.0F},
                    .bias = TensorSpec{.shape = {110, 130}},
                    .mask = TensorSpec{DataType::kBool, {2, 1, 130}}})},
      {{2, 40, 2, 16},
       {2, 50, 1, 16},
       16,
       {.layout = Layout::kBshd,
        .query_offsets = {3, 7},
        .window_left = 9,
        .window_right = 2,
        .query_lengths = {40, 13},
        .key_lengths = {31, 50}}},
      {{2, 100, 24},
       {2, 140, 24},
       24,
       {.causal = Causal::kBottomRight,
        .cu_seqlens_q = {0, 1, 1, 61, 100},
        .cu_seqlens_k = {0, 70, 71, 131, 140}}},
  };
}

std::vector<Case> BackwardCases() {
  return {
      {{1, 4, 70, 33},
       {1, 2, 97, 33},
       20,
       {.causal = Causal::kBottomRight},
       DataType::kF32,
       kBackwardTolerance},
      {{1, 2, 33, 16},
       {1, 1, 70, 16},
       24,
       WithNumbers({.window_left = 40,
                    .alibi_slopes = {0.25F, 0.01F},
                    .sink_logits = {0.5F, -1.0F},
                    .bias = TensorSpec{.shape = {33, 70}},
                    .mask = TensorSpec{DataType::kBool, {2, 1, 70}}}),
       DataType::kF32,
       kBackwardTolerance},
  };
}

// Returns `size_bytes` of random elements of `type`.
std::vector<std::byte> RandomTensor(DataType type, int64_t size_bytes,
                                    uint32_t seed) {
  std::vector<std::byte> tensor(static_cast<size_t>(size_bytes));
  std::vector<float> floats(tensor.size() / static_cast<size_t>(SizeOf(type)));
  RandomFloats(seed).Fill(floats);
  if (type == DataType::kF32) {
    std::copy_n(reinterpret_cast<const std::byte*>(floats.data()),
                tensor.size(), tensor.begin());
    return tensor;
  }
  auto* const halves = reinterpret_cast<uint16_t*>(tensor.data());
  std::transform(floats.begin(), floats.end(), halves, [type](float x) {
    return type == DataType::kF16 ? F16FromFloat(x) : BF16FromFloat(x);
  });
  return tensor;
}

// Returns a mask that makes three quarters of the keys visible.
std::vector<std::byte> RandomMask(int64_t size_bytes, uint32_t seed) {
  std::vector<float> floats(static_cast<size_t>(size_bytes));
  RandomFloats(seed).Fill(floats);
  std::vector<std::byte> mask(floats.size());
  std::transform(floats.begin(), floats.end(), mask.begin(),
                 [](float x) { return std::byte{x < 0.5F}; });
  return mask;
}

std::vector<float> Unwritten(size_t count) {
  return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

const float* Floats(const std::vector<std::byte>& tensor) {
  return reinterpret_cast<const float*>(tensor.data());
}

// Returns the largest difference between `got` and `expected`. It is infinite
// if one of them has a NaN or an infinity that the other does not have.
double WorstError(const void* got, DataType type,
                  const std::vector<double>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = ReferenceElement(got, type, static_cast<int64_t>(i));
    if (value == expected[i]) continue;
    const double error = std::abs(value - expected[i]);
    if (!(error <= worst)) {
      worst =
          std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    }
  }
  return worst;
}

// The problem and inputs of one case.
struct Inputs {
  AttentionProblem problem;
  std::vector<std::byte> query, key, value, bias, mask;

  static absl::StatusOr<Inputs> Make(const Case& test) {
    std::vector<int64_t> value_shape = test.key;
    value_shape.back() = test.v_head_dim;
    ATTND_ASSIGN_OR_RETURN(
        const AttentionProblem problem,
        AttentionProblem::Create(
            {.dtype = test.dtype, .shape = test.query},
            {.dtype = test.dtype, .shape = test.key},
            {.dtype = test.dtype, .shape = value_shape}, test.options,
            {.return_lse = true, .output_dtype = test.output_dtype}));
    return Inputs{
        problem,
        RandomTensor(test.dtype, problem.query_bytes(), 1),
        RandomTensor(test.dtype, problem.key_bytes(), 2),
        RandomTensor(test.dtype, problem.value_bytes(), 3),
        RandomTensor(problem.params().bias_dtype, problem.bias_bytes(), 4),
        RandomMask(problem.mask_bytes(), 5)};
  }

  AttentionBuffers buffers() const {
    return {.query = query.data(),
            .key = key.data(),
            .value = value.data(),
            .bias = bias.data(),
            .mask = mask.data()};
  }
};

absl::Status Verdict(const Case& test, absl::string_view what,
                     const RunStats& stats, double error) {
  if (error <= test.tolerance) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "self-test: kernel ", std::string(stats.kernel), " on ",
      std::string(IsaName(stats.isa)), " differs from the reference by ", error,
      " in ", what, " for query [", absl::StrJoin(test.query, ", "), "] of ",
      NameOf(test.dtype)));
}

absl::Status RunForward(AttentionEngine& engine, const Case& test) {
  ATTND_ASSIGN_OR_RETURN(const Inputs inputs, Inputs::Make(test));
  const AttentionProblem& problem = inputs.problem;
  const DataType output_type = problem.params().output_dtype;
  // In every type, these bytes are a NaN.
  std::vector<std::byte> output(static_cast<size_t>(problem.output_bytes()),
                                std::byte{0xff});
  std::vector<float> lse =
      Unwritten(static_cast<size_t>(problem.lse_bytes()) / sizeof(float));
  AttentionBuffers buffers = inputs.buffers();
  buffers.output = output.data();
  buffers.lse = lse.data();
  ATTND_ASSIGN_OR_RETURN(const RunStats stats, engine.Run(problem, buffers));

  std::vector<double> expected(output.size() /
                               static_cast<size_t>(SizeOf(output_type)));
  std::vector<double> expected_lse(lse.size());
  ReferenceAttention(problem, buffers, expected.data(), expected_lse.data());
  absl::Status status = Verdict(
      test, "output", stats, WorstError(output.data(), output_type, expected));
  status.Update(Verdict(test, "lse", stats,
                        WorstError(lse.data(), DataType::kF32, expected_lse)));
  return status;
}

absl::Status RunBackward(AttentionEngine& engine, const Case& test) {
  ATTND_ASSIGN_OR_RETURN(const Inputs inputs, Inputs::Make(test));
  const AttentionProblem& problem = inputs.problem;
  std::vector<float> output =
      Unwritten(static_cast<size_t>(problem.output_bytes()) / sizeof(float));
  std::vector<float> lse =
      Unwritten(static_cast<size_t>(problem.lse_bytes()) / sizeof(float));
  AttentionBuffers forward = inputs.buffers();
  forward.output = output.data();
  forward.lse = lse.data();
  ATTND_RETURN_IF_ERROR(engine.Run(problem, forward).status());
  const std::vector<std::byte> grad_output =
      RandomTensor(DataType::kF32, problem.output_bytes(), 6);
  std::vector<float> grad_query =
      Unwritten(inputs.query.size() / sizeof(float));
  std::vector<float> grad_key = Unwritten(inputs.key.size() / sizeof(float));
  std::vector<float> grad_value =
      Unwritten(inputs.value.size() / sizeof(float));
  const BackwardBuffers buffers = {.query = Floats(inputs.query),
                                   .key = Floats(inputs.key),
                                   .value = Floats(inputs.value),
                                   .bias = inputs.bias.data(),
                                   .mask = inputs.mask.data(),
                                   .output = output.data(),
                                   .lse = lse.data(),
                                   .grad_output = Floats(grad_output),
                                   .grad_query = grad_query.data(),
                                   .grad_key = grad_key.data(),
                                   .grad_value = grad_value.data()};
  ATTND_ASSIGN_OR_RETURN(const RunStats stats,
                         engine.RunBackward(problem, buffers));

  std::vector<double> expected_query(grad_query.size());
  std::vector<double> expected_key(grad_key.size());
  std::vector<double> expected_value(grad_value.size());
  ReferenceBackward(problem, buffers, expected_query.data(),
                    expected_key.data(), expected_value.data());
  const auto check = [&](absl::string_view what, const std::vector<float>& got,
                         const std::vector<double>& expected) {
    return Verdict(test, what, stats,
                   WorstError(got.data(), DataType::kF32, expected));
  };
  absl::Status status = check("grad_query", grad_query, expected_query);
  status.Update(check("grad_key", grad_key, expected_key));
  status.Update(check("grad_value", grad_value, expected_value));
  return status;
}

}  // namespace

absl::Status RunSelfTest(AttentionEngine& engine) {
  for (const Case& test : ForwardCases()) {
    ATTND_RETURN_IF_ERROR(RunForward(engine, test));
  }
  for (const Case& test : BackwardCases()) {
    ATTND_RETURN_IF_ERROR(RunBackward(engine, test));
  }
  return absl::OkStatus();
}

}  // namespace attnd::server
