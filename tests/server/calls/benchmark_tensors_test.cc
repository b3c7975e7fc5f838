#include "server/calls/benchmark_tensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/naive_attention.h"
#include "core/reference_attention.h"

namespace attnd::server {
namespace {

// Sizes around multiples of a line of 64 bytes, which holds 16 floats or 32
// halves.
constexpr int64_t kRows[] = {1, 2, 15, 16, 17, 31, 32, 33, 101};
constexpr int64_t kRowSizes[] = {1, 15, 16, 17, 31, 33, 80};

AttentionProblem ProblemOf(DataType type, int64_t length, int64_t head_dim) {
  const TensorSpec tensor{.dtype = type, .shape = {1, 1, length, head_dim}};
  return AttentionProblem::Create(tensor, tensor, tensor, {}).value();
}

// Calls `check(type, length, head_dim)` for every combination.
template <typename Check>
void ForEveryTensor(const Check& check) {
  for (const DataType type :
       {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    for (const int64_t length : kRows) {
      for (const int64_t head_dim : kRowSizes) {
        SCOPED_TRACE(absl::StrCat("type ", static_cast<int>(type), ", ", length,
                                  " x ", head_dim));
        check(type, length, head_dim);
      }
    }
  }
}

TEST(BenchmarkTensorsTest, SpansHaveAsManyElementsAsTheTensor) {
  ForEveryTensor([](DataType type, int64_t length, int64_t head_dim) {
    const auto elements = static_cast<size_t>(length * head_dim);
    const BenchmarkTensor tensor =
        BenchmarkTensor::Make(type, length * head_dim * SizeOf(type)).value();
    EXPECT_EQ(type == DataType::kF32 ? tensor.floats().size()
                                     : tensor.halves().size(),
              elements);
  });
}

double LargestError(const AttentionProblem& problem,
                    const BenchmarkTensors& tensors,
                    const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double got =
        ReferenceElement(tensors.output.data(), problem.params().output_dtype,
                         static_cast<int64_t>(i));
    const double error = std::abs(got - expected[i]);
    if (!(error <= largest)) largest = error;  // this keeps a NaN
  }
  return largest;
}

// Checks that both algorithms compute with the same numbers: naive attention on
// the F32 copies must give the oracle's answer on the tensors, for every size
// and type.
TEST(BenchmarkTensorsTest, BothAlgorithmsGetTheSameNumbers) {
  AttentionEngine engine({.threads = 1});
  const StopSignal stop;
  ForEveryTensor([&](DataType type, int64_t length, int64_t head_dim) {
    const AttentionProblem problem = ProblemOf(type, length, head_dim);
    const AttentionProblem in_f32 = ProblemOf(DataType::kF32, length, head_dim);
    const BenchmarkTensors tensors =
        BenchmarkTensors::Make(problem, stop).value();
    const BenchmarkTensors f32_tensors =
        BenchmarkTensors::Make(in_f32, stop).value();
    const bool f32 = type == DataType::kF32;
    ASSERT_TRUE(FillInputs(tensors, f32 ? nullptr : &f32_tensors, stop).ok());
    const BenchmarkTensors& for_naive = f32 ? tensors : f32_tensors;
    std::vector<double> expected(static_cast<size_t>(length * head_dim));
    std::vector<double> lse(static_cast<size_t>(length));
    ReferenceAttention(problem, tensors.buffers(), expected.data(), lse.data());
    ASSERT_TRUE(
        NaiveAttention(engine, in_f32, for_naive.buffers(), nullptr).ok());
    EXPECT_LT(LargestError(in_f32, for_naive, expected), 1e-5);
    ASSERT_TRUE(engine.Run(problem, tensors.buffers()).ok());
    // Answers are below 1 and rounded to the type.
    EXPECT_LT(LargestError(problem, tensors, expected),
              f32 ? 1e-5 : (type == DataType::kF16 ? 1e-3 : 1e-2));
  });
}

TEST(BenchmarkTensorsTest, StopsWhereItIsTold) {
  StopSignal stop;
  const AttentionProblem problem = ProblemOf(DataType::kF16, 33, 17);
  const BenchmarkTensors tensors =
      BenchmarkTensors::Make(problem, stop).value();
  stop.Cancel();
  EXPECT_EQ(FillInputs(tensors, nullptr, stop).code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(BenchmarkTensors::Make(problem, stop).status().code(),
            absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace attnd::server
