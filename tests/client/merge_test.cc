#include "client/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/half_float.h"
#include "core/merge.h"
#include "tests/support/numbers.h"

namespace attnd::client {
namespace {

using ::testing::Each;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Computes attention of queries [rows, kDim] over some of the keys, by its
// definition.
class Problem {
 public:
  static constexpr int64_t kDim = 5;

  Problem(int64_t rows, int64_t keys, uint64_t seed) : rows_(rows) {
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> normal;
    for (auto* list : {&query_, &key_, &value_}) {
      list->resize(static_cast<size_t>((list == &query_ ? rows : keys) * kDim));
      for (float& element : *list) element = normal(rng);
    }
    seen_.resize(static_cast<size_t>(rows * keys));
    // The first row sees nothing, and the others see some of the keys.
    for (size_t i = 0; i < seen_.size(); ++i) {
      seen_[i] = static_cast<int64_t>(i) >= keys && rng() % 3 != 0;
    }
    keys_ = keys;
  }

  struct Answer {
    std::vector<double> output, lse;
  };

  // Computes attention over the keys from `begin` to `end`, and over a sink if
  // there is one.
  Answer Over(int64_t begin, int64_t end, std::optional<double> sink) const {
    Answer answer;
    for (int64_t row = 0; row < rows_; ++row) {
      double sum = sink ? std::exp(*sink) : 0;
      std::vector<double> output(kDim);
      for (int64_t j = begin; j < end; ++j) {
        if (!seen_[static_cast<size_t>(row * keys_ + j)]) continue;
        double score = 0;
        for (int64_t d = 0; d < kDim; ++d) {
          score += double{At(query_, row, d)} * double{At(key_, j, d)};
        }
        sum += std::exp(score);
        for (int64_t d = 0; d < kDim; ++d) {
          output[static_cast<size_t>(d)] +=
              std::exp(score) * double{At(value_, j, d)};
        }
      }
      for (const double element : output) {
        answer.output.push_back(sum > 0 ? element / sum : 0);
      }
      answer.lse.push_back(std::log(sum));
    }
    return answer;
  }

 private:
  static float At(const std::vector<float>& list, int64_t row, int64_t d) {
    return list[static_cast<size_t>(row * kDim + d)];
  }

  int64_t rows_, keys_;
  std::vector<float> query_, key_, value_;
  std::vector<bool> seen_;
};

std::vector<std::byte> Rounded(const std::vector<double>& values,
                               DataType type) {
  std::vector<std::byte> bytes(values.size() *
                               static_cast<size_t>(SizeOf(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    const uint16_t bits =
        type == DataType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
    if (type == DataType::kF32) {
      std::memcpy(&bytes[i * sizeof(value)], &value, sizeof(value));
    } else {
      std::memcpy(&bytes[i * sizeof(bits)], &bits, sizeof(bits));
    }
  }
  return bytes;
}

float FloatAt(const std::vector<std::byte>& bytes, DataType type, size_t i) {
  float value = 0;
  uint16_t bits = 0;
  if (type == DataType::kF32) {
    std::memcpy(&value, &bytes[i * sizeof(value)], sizeof(value));
    return value;
  }
  std::memcpy(&bits, &bytes[i * sizeof(bits)], sizeof(bits));
  return type == DataType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

std::vector<float> RoundedToFloat(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

TEST(MergeAttentionTest, PartsOfTheKeysMakeTheWhole) {
  constexpr int64_t kRows = 7, kKeys = 23;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 300; ++i) {
    const DataType type =
        std::vector{DataType::kF32, DataType::kF16, DataType::kBF16}[rng() % 3];
    const std::optional<double> sink =
        rng() % 2 == 0 ? std::optional(0.5) : std::nullopt;
    const Problem problem(kRows, kKeys, rng());
    const size_t num_parts = 2 + rng() % 4;
    const size_t with_sink = rng() % num_parts;
    std::vector<std::vector<std::byte>> outputs;
    std::vector<std::vector<float>> lses;
    int64_t begin = 0;
    for (size_t p = 0; p < num_parts; ++p) {
      // Some parts have no keys.
      const int64_t end =
          p + 1 == num_parts
              ? kKeys
              : begin + static_cast<int64_t>(
                            rng() % static_cast<uint64_t>(kKeys - begin + 1));
      const Problem::Answer part =
          problem.Over(begin, end, p == with_sink ? sink : std::nullopt);
      outputs.push_back(Rounded(part.output, type));
      lses.push_back(RoundedToFloat(part.lse));
      begin = end;
    }
    std::vector<AttentionPart> parts;
    parts.reserve(num_parts);
    for (size_t p = 0; p < num_parts; ++p) {
      parts.push_back({ConstElements(type, outputs[p]), lses[p]});
    }
    std::vector<std::byte> output(outputs[0].size());
    std::vector<float> lse(kRows, 7);
    ASSERT_EQ(MergeAttention(parts, {kRows, Problem::kDim},
                             {.output = {type, output}, .lse = lse}),
              absl::OkStatus());
    const Problem::Answer whole = problem.Over(0, kKeys, sink);
    // Rounding each part, each lse and the answer adds up to half an ulp each.
    const double ulp = type == DataType::kF32   ? 0x1p-24
                       : type == DataType::kF16 ? 0x1p-11
                                                : 0x1p-8;
    for (size_t e = 0; e < whole.output.size(); ++e) {
      ASSERT_NEAR(FloatAt(output, type, e), whole.output[e], 8 * ulp) << e;
    }
    for (size_t row = 0; row < kRows; ++row) {
      if (std::isinf(whole.lse[row])) {
        ASSERT_EQ(lse[row], kMinusInfinity);
      } else {
        ASSERT_NEAR(lse[row], whole.lse[row], 1e-6);
      }
    }
  }
}

// The shape [batch, seq, heads, dim] is [2, 2, 3, 1], and lse has the axes
// [batch, heads, seq].
TEST(MergeAttentionTest, RowsFindTheirLseInBothLayouts) {
  std::vector<float> bhsd(12), bshd(12), lse(12), other(12, 100);
  for (size_t b = 0; b < 2; ++b) {
    for (size_t h = 0; h < 3; ++h) {
      for (size_t s = 0; s < 2; ++s) {
        const size_t row = (b * 3 + h) * 2 + s;
        lse[row] = static_cast<float>(row) / 4;
        bhsd[row] = bshd[(b * 2 + s) * 3 + h] = static_cast<float>(row);
      }
    }
  }
  const std::vector<float> zero(12);
  std::vector<float> merged_bhsd(12), merged_bshd(12);
  ASSERT_TRUE(MergeAttention({{{bhsd, lse}, {other, zero}}}, {2, 3, 2, 1},
                             {.output = merged_bhsd})
                  .ok());
  ASSERT_TRUE(MergeAttention({{{bshd, lse}, {other, zero}}}, {2, 2, 3, 1},
                             {.output = merged_bshd}, Layout::kBshd)
                  .ok());
  std::vector<float> expected(12), expected_lse(12);
  const PartialResult partials[] = {{bhsd.data(), lse.data()},
                                    {other.data(), zero.data()}};
  MergePartials(partials, 12, 1, expected.data(), expected_lse.data());
  EXPECT_EQ(merged_bhsd, expected);
  for (size_t b = 0; b < 2; ++b) {
    for (size_t h = 0; h < 3; ++h) {
      for (size_t s = 0; s < 2; ++s) {
        EXPECT_EQ(merged_bshd[(b * 2 + s) * 3 + h],
                  expected[(b * 3 + h) * 2 + s]);
      }
    }
  }
  // Here, the shape is [seq, heads, dim], without a batch.
  std::vector<float> small(6);
  const auto half = [](const std::vector<float>& list) {
    return std::vector<float>(list.begin(), list.begin() + 6);
  };
  ASSERT_TRUE(
      MergeAttention({{{half(bshd), half(lse)}, {half(other), half(zero)}}},
                     {2, 3, 1}, {.output = small}, Layout::kBshd)
          .ok());
  EXPECT_EQ(small, half(merged_bshd));
}

TEST(MergeAttentionTest, NothingSeenIsZero) {
  std::vector<float> output(6, 7), lse(2, 7);
  ASSERT_TRUE(MergeAttention({}, {2, 3}, {.output = output, .lse = lse}).ok());
  EXPECT_THAT(output, Each(0));
  EXPECT_THAT(lse, Each(kMinusInfinity));
  // If a part saw nothing, its output must not be read.
  const std::vector<float> nan(6, NAN), nothing(2, kMinusInfinity);
  output.assign(6, 7);
  ASSERT_TRUE(
      MergeAttention({{{nan, nothing}}}, {2, 3}, {.output = output}).ok());
  EXPECT_THAT(output, Each(0));
}

TEST(MergeAttentionTest, TensorsWithoutElementsAreFine) {
  std::vector<float> lse(2, 7);
  const std::vector<float> ones(2, 1);
  EXPECT_TRUE(MergeAttention({{{{}, {}}}}, {0, 3}, {.output = {}}).ok());
  EXPECT_TRUE(MergeAttention({{{{}, ones}, {{}, ones}}}, {2, 0},
                             {.output = {}, .lse = lse})
                  .ok());
  EXPECT_THAT(lse, Each(testing::FloatEq(1 + std::log(2.F))));
}

TEST(MergeAttentionTest, ColumnsWithoutRowsTakeNoMemory) {
  EXPECT_TRUE(
      MergeAttention({{{{}, {}}}}, {0, int64_t{1} << 62}, {.output = {}}).ok());
}

TEST(MergeAttentionTest, PartsAreAddedOneByOne) {
  std::vector<float> output(2), lse(1, kMinusInfinity);
  const std::vector<float> zero(1);
  for (const float value : {3.F, 6.F, 9.F}) {
    const std::vector<float> part(2, value);
    ASSERT_TRUE(MergeAttention({{{output, lse}, {part, zero}}}, {1, 2},
                               {.output = output, .lse = lse})
                    .ok());
  }
  EXPECT_THAT(output, Each(testing::FloatEq(6)));
  EXPECT_FLOAT_EQ(lse[0], std::log(3.F));
}

TEST(MergeAttentionTest, RefusesWhatDoesNotFitByField) {
  const std::vector<float> six(6), two(2);
  const std::vector<uint8_t> bools(6);
  const std::vector<std::byte> odd(7);
  std::vector<float> output(6, 7), lse(2, 7), five(5), three(3);
  const auto refusal = [](const std::vector<AttentionPart>& parts,
                          const std::vector<int64_t>& shape,
                          const AttentionOutputs& merged) {
    const absl::Status status = MergeAttention(parts, shape, merged);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const AttentionOutputs fits = {.output = output, .lse = lse};
  EXPECT_EQ(refusal({}, {6}, fits),
            "output_shape: expected two to four extents of 0 or more with a "
            "product below 2^63, got [6]");
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {}, {1, 1, 1, 2, 3}, {-2, -3}, {int64_t{1} << 62, 4}}) {
    EXPECT_THAT(refusal({}, shape, fits), testing::StartsWith("output_shape:"));
  }
  EXPECT_EQ(refusal({}, {2, 3}, {.output = five}),
            "merged.output: expected 6 elements of F32, got 20 bytes");
  EXPECT_EQ(refusal({}, {2, 3}, {.output = output, .lse = three}),
            "merged.lse: expected 2 elements of F32, got 12 bytes");
  EXPECT_EQ(refusal({{six, two}, {two, two}}, {2, 3}, fits),
            "parts[1].output: expected 6 elements of F32, got 8 bytes");
  EXPECT_EQ(refusal({{six, six}}, {2, 3}, fits),
            "parts[0].lse: expected 2 elements of F32, got 24 bytes");
  EXPECT_EQ(refusal({{bools, two}}, {2, 3}, fits),
            "parts[0].output: expected F32, F16 or BF16, got BOOL");
  EXPECT_EQ(refusal({{six, {DataType::kF16, two}}}, {2, 3}, fits),
            "parts[0].lse: expected F32, got F16");
  EXPECT_EQ(refusal({{{DataType::kF16, odd}, two}}, {2, 3}, fits),
            "parts[0].output: expected 6 elements of F16, got 7 bytes");
  EXPECT_THAT(output, Each(7));
  EXPECT_THAT(lse, Each(7));
}

}  // namespace
}  // namespace attnd::client
