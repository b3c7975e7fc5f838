// Runs every rpc from the received bytes to the bytes of the answer, on small
// shapes of every type and size and with every option, and compares the answers
// with the oracle. Under sanitizers, this checks the memory that calls of the
// server lay out themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/version.h"
#include "tests/server/case_messages.h"
#include "tests/server/whole_calls.h"

namespace attnd::server {
namespace {

using testing::AttentionCase;
using testing::CaseShape;
using testing::GradientCase;
using ::testing::IsEmpty;
using testing::RandomCase;
using testing::RandomGradientCase;

// Sizes around lines of 64 bytes, which hold 16 floats, 32 halves or 64
// elements of a mask.
constexpr int64_t kLengths[] = {1, 15, 16, 17, 31, 33, 101};
constexpr int64_t kHeadDims[] = {1, 15, 16, 17, 31, 33, 80};
constexpr DataType kTypes[] = {DataType::kF32, DataType::kF16, DataType::kBF16};

// The number of cases is the same under sanitizers, because these cases are
// meant for them.
constexpr uint64_t kSeeds = 200;
constexpr int64_t kMaxLength = 33;

// Returns a text from which the case can be made again.
std::string Trace(uint64_t seed, const std::string& test) {
  return absl::StrCat("seed ", seed, ": ", test);
}

class EveryCallTest : public ::testing::Test {
 protected:
  ~EveryCallTest() override {
    // When all calls are over, no slot and no memory may be held.
    EXPECT_TRUE(admission_.WaitIdle(std::chrono::minutes(1)));
    EXPECT_EQ(admission_.usage().bytes, 0);
    EXPECT_EQ(admission_.usage().in_flight, 0);
  }

  // Returns the message of the answer, or an empty message after a failure.
  template <typename Response>
  static Response Parse(const WholeAnswer& answer) {
    Response response;
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.messages.size(), answer.status.ok() ? 1U : 0U);
    if (!answer.messages.empty()) {
      EXPECT_TRUE(response.ParseFromString(answer.messages.front()));
    }
    return response;
  }

  // Compares the answer of a forward method with the oracle of `test`.
  template <typename Response>
  static void ExpectExact(const Response& response, AttentionCase& test) {
    ASSERT_THAT(
        TakeAnswer(response.output(),
                   response.has_lse() ? &response.lse() : nullptr, test),
        IsEmpty());
    EXPECT_THAT(test.Compare(), IsEmpty());
  }

  void ExpectForward(AttentionCase& test, const Slicing& slicing) {
    v1::AttentionRequest request = RequestOf(test);
    ExpectExact(Parse<v1::AttentionResponse>(
                    CallUnary(context_, AttentionMethod::kAttention,
                              request.SerializeAsString(), slicing)),
                test);
    // If all tensors can be sent as numbers, this sends the same request as
    // `values`.
    if (test.problem().params().query_dtype == DataType::kF32 &&
        test.problem().params().output_dtype == DataType::kF32) {
      UseValues(*request.mutable_query());
      ExpectExact(Parse<v1::AttentionResponse>(
                      CallUnary(context_, AttentionMethod::kAttention,
                                request.SerializeAsString(), slicing)),
                  test);
    }
  }

  void ExpectStream(AttentionCase& test, size_t chunk_bytes,
                    const Slicing& slicing) {
    const WholeAnswer answer =
        CallStream(context_, StreamOf(RequestOf(test), chunk_bytes), slicing);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    const auto joined = JoinStream(answer.messages);
    ASSERT_TRUE(joined.ok()) << joined.status();
    ExpectExact(*joined, test);
  }

  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{int64_t{1} << 30, 64, &engine_.pool()};
  ServiceContext context_{engine_, admission_, int64_t{1} << 28, 1024};
};

// Calls `check` for every type and size, without options.
template <typename Check>
void ForEverySize(const Check& check) {
  uint64_t seed = 0;
  for (const DataType type : kTypes) {
    for (const int64_t length : kLengths) {
      for (const int64_t head_dim : kHeadDims) {
        AttentionCase test({.q_len = length,
                            .kv_len = length,
                            .head_dim = head_dim,
                            .v_head_dim = head_dim,
                            .query_dtype = type,
                            .key_dtype = type,
                            .value_dtype = type},
                           ++seed);
        SCOPED_TRACE(test.ToString());
        check(test, seed);
      }
    }
  }
}

TEST_F(EveryCallTest, AttentionOfEverySize) {
  ForEverySize([&](AttentionCase& test, uint64_t seed) {
    ExpectForward(test, {.max_bytes = 1 + 97 * (seed % 60), .seed = seed});
  });
}

TEST_F(EveryCallTest, AttentionWithAnyOptions) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937_64 rng(seed);
    AttentionCase test(RandomCase(rng, kMaxLength), seed);
    SCOPED_TRACE(Trace(seed, test.ToString()));
    ExpectForward(test, {.max_bytes = 1 + rng() % 6000, .seed = seed});
  }
}

TEST_F(EveryCallTest, StreamOfEverySize) {
  ForEverySize([&](AttentionCase& test, uint64_t seed) {
    ExpectStream(test, 1 + 997 * (seed % 20),
                 {.max_bytes = 5000, .seed = seed});
  });
}

TEST_F(EveryCallTest, StreamWithAnyOptions) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937_64 rng(seed);
    AttentionCase test(RandomCase(rng, kMaxLength), seed);
    SCOPED_TRACE(Trace(seed, test.ToString()));
    // Chunks have at least 64 bytes, because many messages are slow.
    ExpectStream(test, 64 + rng() % 5000,
                 {.max_bytes = 1 + rng() % 3000, .seed = seed});
  }
}

// Returns `shape`, changed to a sequence that attends to itself.
CaseShape SelfShape(CaseShape shape) {
  shape.num_kv_heads *= shape.group;
  shape.group = 1;
  shape.key_dtype = shape.value_dtype = shape.query_dtype;
  shape.kv_len = shape.q_len;
  shape.v_head_dim = shape.head_dim;
  AttentionOptions& options = shape.options;
  const auto fit = [&](std::vector<int64_t>& broadcast) {
    if (!broadcast.empty() && broadcast.back() != 1) {
      broadcast.back() = shape.kv_len;
    }
  };
  if (options.bias) fit(options.bias->shape);
  if (options.mask) fit(options.mask->shape);
  for (int64_t& length : options.key_lengths) {
    length = std::min(length, shape.kv_len);
  }
  options.cu_seqlens_k = options.cu_seqlens_q;
  return shape;
}

TEST_F(EveryCallTest, SelfAttentionOfEverySize) {
  ForEverySize([&](AttentionCase& test, uint64_t seed) {
    test.key = test.value = test.query;
    ExpectExact(Parse<v1::SelfAttentionResponse>(CallUnary(
                    context_, AttentionMethod::kSelfAttention,
                    SelfRequestOf(test).SerializeAsString(), {.seed = seed})),
                test);
  });
}

TEST_F(EveryCallTest, SelfAttentionWithAnyOptions) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937_64 rng(seed);
    AttentionCase test(SelfShape(RandomCase(rng, kMaxLength)), seed);
    test.key = test.value = test.query;
    SCOPED_TRACE(Trace(seed, test.ToString()));
    ExpectExact(Parse<v1::SelfAttentionResponse>(
                    CallUnary(context_, AttentionMethod::kSelfAttention,
                              SelfRequestOf(test).SerializeAsString(),
                              {.max_bytes = 1 + rng() % 6000, .seed = seed})),
                test);
  }
}

TEST_F(EveryCallTest, CrossAttentionWithAnyOptions) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937_64 rng(seed);
    CaseShape shape = RandomCase(rng, kMaxLength);
    shape.value_dtype = shape.key_dtype;
    shape.v_head_dim = shape.head_dim;
    AttentionCase test(shape, seed);
    test.value = test.key;
    SCOPED_TRACE(Trace(seed, test.ToString()));
    ExpectExact(Parse<v1::CrossAttentionResponse>(
                    CallUnary(context_, AttentionMethod::kCrossAttention,
                              CrossRequestOf(test).SerializeAsString(),
                              {.max_bytes = 1 + rng() % 6000, .seed = seed})),
                test);
  }
}

// Runs the forward call of `test` and then its gradients.
void ExpectBackward(const ServiceContext& context, GradientCase& test,
                    const Slicing& slicing) {
  AttentionCase& forward = test.forward;
  ASSERT_TRUE(context.engine.Run(forward.problem(), forward.buffers()).ok());
  const WholeAnswer answer =
      CallUnary(context, AttentionMethod::kAttentionBackward,
                BackwardRequestOf(test).SerializeAsString(), slicing);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  v1::AttentionBackwardResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.messages.front()));
  const testing::CaseSpecs specs = SpecsOf(forward.shape());
  const auto take = [](const v1::Tensor& from, const TensorSpec& spec,
                       std::vector<float>& to) {
    return TakeElements(from, DataType::kF32, spec.shape, to.data(),
                        to.size() * sizeof(float));
  };
  ASSERT_THAT(take(response.grad_query(), specs.query, test.grad_query),
              IsEmpty());
  ASSERT_THAT(take(response.grad_key(), specs.key, test.grad_key), IsEmpty());
  ASSERT_THAT(take(response.grad_value(), specs.value, test.grad_value),
              IsEmpty());
  EXPECT_THAT(test.Compare(), IsEmpty());
}

TEST_F(EveryCallTest, BackwardOfEverySize) {
  uint64_t seed = 0;
  for (const int64_t length : kLengths) {
    for (const int64_t head_dim : kHeadDims) {
      GradientCase test({.q_len = length,
                         .kv_len = length,
                         .head_dim = head_dim,
                         .v_head_dim = head_dim,
                         .outputs = {.return_lse = true}},
                        ++seed);
      SCOPED_TRACE(test.forward.ToString());
      ExpectBackward(context_, test, {.seed = seed});
    }
  }
}

TEST_F(EveryCallTest, BackwardWithAnyOptions) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937_64 rng(seed);
    GradientCase test(RandomGradientCase(rng, kMaxLength), seed);
    SCOPED_TRACE(Trace(seed, test.forward.ToString()));
    ExpectBackward(context_, test,
                   {.max_bytes = 1 + rng() % 6000, .seed = seed});
  }
}

TEST_F(EveryCallTest, MemoryEstimateWithAnyOptions) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    std::mt19937_64 rng(seed);
    CaseShape shape = RandomCase(rng, 300);
    // A MemoryEstimateRequest cannot express 0, which means the default there.
    if (shape.batch * shape.q_len * shape.kv_len == 0) continue;
    shape.rank = shape.options.cu_seqlens_q.empty() ? 4 : 3;
    shape.key_dtype = shape.value_dtype = shape.query_dtype;
    SCOPED_TRACE(Trace(seed, shape.ToString()));
    const auto response = Parse<v1::MemoryEstimateResponse>(CallMemoryEstimate(
        context_, EstimateRequestOf(shape).SerializeAsString(),
        {.max_bytes = 1 + rng() % 100, .seed = seed}));
    const testing::CaseSpecs specs = SpecsOf(shape);
    const auto expected =
        engine_.estimator().Estimate(*AttentionProblem::Create(
            specs.query, specs.key, specs.value, shape.options, shape.outputs));
    EXPECT_EQ(response.input_bytes(), expected.input_bytes);
    EXPECT_EQ(response.output_bytes(), expected.output_bytes);
    EXPECT_EQ(response.workspace_bytes(), expected.workspace_bytes);
  }
}

TEST_F(EveryCallTest, ServerInfo) {
  const auto response =
      Parse<v1::GetServerInfoResponse>(CallServerInfo(context_, ""));
  EXPECT_EQ(response.version(), kVersion);
  EXPECT_EQ(response.threads(), 2);
}

// benchmark_test.cc runs all sizes, but without the stream.
TEST_F(EveryCallTest, BenchmarkOfEveryType) {
  for (const v1::DataType type :
       {v1::DATA_TYPE_F32, v1::DATA_TYPE_F16, v1::DATA_TYPE_BF16}) {
    for (const int64_t dimensions : {1, 17, 80}) {
      v1::BenchmarkRequest request;
      request.set_num_vectors(101);
      request.set_dimensions(dimensions);
      request.set_num_heads(3);
      request.set_dtype(type);
      request.set_block_size(7);
      request.set_threads(1 + dimensions % 2);
      request.set_repetitions(2);
      SCOPED_TRACE(request.ShortDebugString());
      const WholeAnswer answer =
          CallBenchmark(context_, request.SerializeAsString());
      ASSERT_TRUE(answer.status.ok()) << answer.status;
      v1::BenchmarkResponse last;
      ASSERT_TRUE(last.ParseFromString(answer.messages.back()));
      ASSERT_TRUE(last.has_result());
      EXPECT_TRUE(last.result().has_naive_time_ms());
      // Answers are below 1 and rounded to the type.
      EXPECT_LT(last.result().max_abs_error(), type == v1::DATA_TYPE_F32 ? 1e-5
                                               : type == v1::DATA_TYPE_F16
                                                   ? 1e-3
                                                   : 1e-2);
    }
  }
}

}  // namespace
}  // namespace attnd::server
