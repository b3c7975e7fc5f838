#include "server/planning/estimate.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>

#include "base/field_error.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

class EstimateTest : public ::testing::Test {
 protected:
  v1::MemoryEstimateResponse Estimate(
      const v1::MemoryEstimateRequest& request) {
    const auto response = EstimateMemory(request, engine_, limits_);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? *response : v1::MemoryEstimateResponse();
  }

  // The instruction set is fixed, because the numbers of bytes depend on it.
  AttentionEngine engine_{{.threads = 2, .force_isa = Isa::kScalar}};
  const CostLimits limits_{.max_message_bytes = 16LL << 20,
                           .budget_bytes = 100LL << 20,
                           .max_in_flight = 8};
};

TEST_F(EstimateTest, TheParts) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1000);
  request.set_dimensions(64);
  const auto got = Estimate(request);
  EXPECT_EQ(got.input_bytes(), 3 * 1000 * 64 * 4);
  EXPECT_EQ(got.output_bytes(), 1000 * 64 * 4);
  EXPECT_EQ(got.naive_bytes(),
            4LL * 1000 * 1000 + got.input_bytes() + got.output_bytes());
  EXPECT_EQ(got.flash_bytes(),
            got.input_bytes() + got.output_bytes() + got.workspace_bytes());
  EXPECT_EQ(got.flops(), 4LL * 64 * 1000 * 1000);
  EXPECT_NEAR(got.reduction_ratio(),
              1 - double(got.flash_bytes()) / double(got.naive_bytes()), 1e-12);
  EXPECT_GE(got.peak_per_request_bytes(), got.flash_bytes());
  EXPECT_EQ(got.peak_bytes(), got.peak_per_request_bytes());
  EXPECT_GT(got.required_message_bytes(), got.input_bytes());
  EXPECT_TRUE(got.fits());
}

TEST_F(EstimateTest, ConcurrencyMultipliesAndMayNotFit) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(8000);
  const int64_t one = Estimate(request).peak_bytes();
  request.set_concurrency(8);
  const auto got = Estimate(request);
  EXPECT_EQ(got.peak_bytes(), 8 * one);
  EXPECT_FALSE(got.fits());
  EXPECT_EQ(got.limiting_factor(), "memory_budget");
}

TEST_F(EstimateTest, NoMoreRunAtOnceThanAreLetIn) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1);
  request.set_concurrency(limits_.max_in_flight);
  EXPECT_TRUE(Estimate(request).fits());
  EXPECT_NE(Estimate(request).limiting_factor(), "max_in_flight");
  request.set_concurrency(limits_.max_in_flight + 1);
  EXPECT_FALSE(Estimate(request).fits());
  EXPECT_EQ(Estimate(request).limiting_factor(), "max_in_flight");
}

TEST_F(EstimateTest, AMessageMayBeTheLimit) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(12'000);
  const auto got = Estimate(request);
  EXPECT_FALSE(got.fits());
  EXPECT_EQ(got.limiting_factor(), "message_size");
}

TEST_F(EstimateTest, AStreamNeedsNoLargeMessage) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(12'000);
  const auto inline_bytes = Estimate(request);
  request.set_transport(v1::TRANSPORT_STREAM);
  const auto got = Estimate(request);
  EXPECT_TRUE(got.fits());
  EXPECT_EQ(got.limiting_factor(), "memory_budget");
  EXPECT_EQ(got.flash_bytes(), inline_bytes.flash_bytes());
  // The rest is what the server keeps to track the call.
  const int64_t records_bytes = (24 << 10) + got.input_bytes() / 2048;
  EXPECT_EQ(got.peak_per_request_bytes(),
            got.flash_bytes() + got.wire_bytes() + records_bytes);
  EXPECT_LT(got.wire_bytes(), 17 << 20);
  EXPECT_EQ(got.required_message_bytes(), (1 << 20) + 4096);
  // If the limit for messages is smaller, chunks are smaller as well.
  CostLimits small = limits_;
  small.max_message_bytes = 64 << 10;
  EXPECT_EQ(EstimateMemory(request, engine_, small)->required_message_bytes(),
            64 << 10);
  EXPECT_TRUE(EstimateMemory(request, engine_, small)->fits());
}

// The problem itself uses a larger share of the other limit.
TEST_F(EstimateTest, TheLimitIsTheOneThatALongerProblemMeets) {
  // The budget is a little larger than what two requests with the largest
  // messages hold.
  constexpr int64_t kBudget = 99LL << 20;
  constexpr int64_t kMessage = 16LL << 20;
  const CostLimits limits{.max_message_bytes = kMessage,
                          .budget_bytes = kBudget,
                          .max_in_flight = 8};
  v1::MemoryEstimateRequest request;
  request.set_concurrency(2);
  const auto estimate = [&](int64_t length) {
    request.set_seq_len(length);
    return EstimateMemory(request, engine_, limits).value();
  };
  const auto small = estimate(8);
  EXPECT_GT(static_cast<double>(small.peak_bytes()) / kBudget,
            static_cast<double>(small.required_message_bytes()) / kMessage);
  EXPECT_EQ(small.limiting_factor(), "message_size");
  // This finds the boundary: the longest length that fits, and the shortest
  // that does not fit.
  int64_t fits = 8;
  int64_t too_long = 1 << 20;
  while (too_long - fits > 1) {
    const int64_t middle = (fits + too_long) / 2;
    (estimate(middle).fits() ? fits : too_long) = middle;
  }
  EXPECT_GT(estimate(too_long).required_message_bytes(), kMessage);
  EXPECT_LE(estimate(too_long).peak_bytes(), kBudget);
}

TEST_F(EstimateTest, WithoutLimitsNumbersRunOut) {
  constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
  const CostLimits limits{.max_message_bytes = kNoLimit,
                          .budget_bytes = kNoLimit,
                          .max_in_flight = 8};
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1000);
  const auto got = EstimateMemory(request, engine_, limits);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->fits());
  EXPECT_EQ(got->limiting_factor(), "int64_range");
}

TEST_F(EstimateTest, NoContainerHoldsWhatCannotBeComputed) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1);
  request.set_transport(v1::TRANSPORT_SHARED_MEMORY);
  request.set_batch(int64_t{1} << 40);
  EXPECT_TRUE(EstimateContainer(request, engine_, limits_).ok());
  request.set_batch(int64_t{1} << 57);
  const absl::Status status =
      EstimateContainer(request, engine_, limits_).status();
  EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
  EXPECT_EQ(status.message(),
            "batch: expected a smaller number, because the problem is too "
            "large to be computed, got 144115188075855872");
}

TEST_F(EstimateTest, MoreThreadsHoldMore) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(4000);
  request.set_threads(1);
  const int64_t one = Estimate(request).workspace_bytes();
  request.set_threads(16);
  EXPECT_GT(Estimate(request).workspace_bytes(), one);
}

TEST_F(EstimateTest, TypesAndOptionsCount) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1000);
  request.set_dimensions(64);
  request.set_num_q_heads(2);
  request.set_dtype(v1::DATA_TYPE_BF16);
  v1::AttentionOptions& options = *request.mutable_options();
  options.set_output_dtype(v1::DATA_TYPE_F32);
  options.set_return_lse(true);
  options.mutable_bias()->set_dtype(v1::DATA_TYPE_F16);
  for (const int64_t extent : {2, 1, 1000}) {
    options.mutable_bias()->add_shape(extent);
  }
  options.mutable_mask()->set_dtype(v1::DATA_TYPE_BOOL);
  for (const int64_t extent : {1000, 1000}) {
    options.mutable_mask()->add_shape(extent);
  }
  options.set_window_left(0);
  options.set_window_right(0);
  const auto got = Estimate(request);
  EXPECT_EQ(got.input_bytes(),
            3 * 2 * 1000 * 64 * 2 + 2 * 1000 * 2 + 1000 * 1000);
  EXPECT_EQ(got.output_bytes(), 2 * 1000 * 64 * 4 + 2 * 1000 * 4);
  EXPECT_EQ(got.flops(), 4LL * 64 * 2 * 1000);
  EXPECT_EQ(got.limiting_factor(), "message_size");
}

// The estimate must know what larger problems look like if the options contain
// lengths.
TEST_F(EstimateTest, ARaggedBatchHasALimitToo) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1000);
  for (const int64_t offset : {0, 1, 1, 300, 1000}) {
    request.mutable_options()->add_cu_seqlens_q(offset);
    request.mutable_options()->add_cu_seqlens_k(offset);
  }
  const auto got = Estimate(request);
  EXPECT_EQ(got.flops(), 4LL * 128 * (1 + 299 * 299 + 700 * 700));
  EXPECT_EQ(got.limiting_factor(), "message_size");
  request.clear_options();
  request.set_batch(2);
  for (const int64_t length : {1000, 10}) {
    request.mutable_options()->add_query_lengths(length);
    request.mutable_options()->add_key_lengths(length);
  }
  const auto padded = Estimate(request);
  EXPECT_EQ(padded.flops(), 4LL * 128 * (1000 * 1000 + 10 * 10));
  EXPECT_EQ(padded.limiting_factor(), "message_size");
}

// The requests have the largest allowed number of entries.
TEST_F(EstimateTest, LongListsGetAnAnswer) {
  constexpr int64_t kEntries = 65536;
  v1::MemoryEstimateRequest request;
  request.set_seq_len(kEntries);
  request.set_dimensions(1);
  v1::MemoryEstimateRequest goal;
  goal.set_dimensions(1);
  goal.set_batch(kEntries);
  goal.set_max_seq_len_for_budget_bytes(int64_t{1} << 40);
  goal.set_transport(v1::TRANSPORT_SHARED_MEMORY);
  for (int64_t entry = 0; entry < kEntries; ++entry) {
    goal.mutable_options()->add_query_lengths(entry);
    goal.mutable_options()->add_key_lengths(entry);
    request.mutable_options()->add_cu_seqlens_q(entry);
    request.mutable_options()->add_cu_seqlens_k(entry);
  }
  request.mutable_options()->add_cu_seqlens_q(kEntries);
  request.mutable_options()->add_cu_seqlens_k(kEntries);
  EXPECT_EQ(Estimate(request).limiting_factor(), "message_size");
  EXPECT_GT(Estimate(goal).max_seq_len(), kEntries);
}

// The workspace has more bytes than any number can hold. Adding the bytes of
// the lists must not overflow.
TEST_F(EstimateTest, ListsBesideAbsurdThreadsDoNotWrap) {
  v1::MemoryEstimateRequest request;
  request.set_num_q_heads(1 << 15);
  request.set_dimensions(1);
  request.set_q_len(1LL << 40);
  request.set_kv_len(1);
  for (int head = 0; head < 1 << 15; ++head) {
    request.mutable_options()->add_alibi_slopes(1);
  }
  int64_t last = 0;
  for (int bits = 0; bits < 63; ++bits) {
    request.set_threads(int64_t{1} << bits);
    const auto got = Estimate(request);
    EXPECT_FALSE(got.fits());
    EXPECT_GE(got.peak_bytes(), last);
    EXPECT_GE(got.peak_bytes(), got.workspace_bytes());
    last = got.peak_bytes();
  }
  EXPECT_EQ(last, std::numeric_limits<int64_t>::max());
}

TEST_F(EstimateTest, WhatLiesInRegionsIsNotHeld) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(1000);
  request.set_concurrency(3);
  request.set_transport(v1::TRANSPORT_SHARED_MEMORY);
  const auto plain = Estimate(request);
  EXPECT_EQ(plain.input_bytes(), 3 * 1000 * 128 * 4);
  EXPECT_EQ(plain.wire_bytes(), 2 * kMessageEnvelopeBytes);
  EXPECT_EQ(plain.required_message_bytes(), kMessageEnvelopeBytes);
  EXPECT_EQ(plain.peak_per_request_bytes(),
            plain.workspace_bytes() + 2 * kMessageEnvelopeBytes + (24 << 10));
  EXPECT_EQ(plain.peak_bytes(), 3 * plain.peak_per_request_bytes());
  EXPECT_EQ(plain.limiting_factor(), "memory_budget");
  // The server copies a mask, even if it is in shared memory.
  v1::Tensor& mask = *request.mutable_options()->mutable_mask();
  mask.set_dtype(v1::DATA_TYPE_BOOL);
  mask.add_shape(1000);
  mask.add_shape(1000);
  const auto masked = Estimate(request);
  EXPECT_GE(masked.peak_per_request_bytes(),
            masked.workspace_bytes() + 1000 * 1000);
}

// Expects that the problem of `size` fits, and that of size + 1 does not.
TEST_F(EstimateTest, GoalsFindTheLargestThatFits) {
  using Setter = void (v1::MemoryEstimateRequest::*)(int64_t);
  struct Case {
    Setter set_goal;
    Setter set_size;
    int64_t (v1::MemoryEstimateResponse::*answer)() const;
    v1::MemoryEstimateResponse::AnswerCase answer_case;
  };
  using Request = v1::MemoryEstimateRequest;
  using Response = v1::MemoryEstimateResponse;
  const Case cases[] = {
      {&Request::set_max_seq_len_for_budget_bytes, &Request::set_seq_len,
       &Response::max_seq_len, Response::kMaxSeqLen},
      {&Request::set_max_batch_for_budget_bytes, &Request::set_batch,
       &Response::max_batch, Response::kMaxBatch},
      {&Request::set_max_concurrency_for_budget_bytes,
       &Request::set_concurrency, &Response::max_concurrency,
       Response::kMaxConcurrency}};
  for (const auto& [set_goal, set_size, answer, answer_case] : cases) {
    for (const int64_t budget_bytes : {int64_t{0}, int64_t{30} << 20}) {
      for (const auto transport : {v1::TRANSPORT_INLINE, v1::TRANSPORT_STREAM,
                                   v1::TRANSPORT_SHARED_MEMORY}) {
        SCOPED_TRACE(::testing::Message()
                     << answer_case << " " << budget_bytes << " " << transport);
        Request request;
        request.set_seq_len(700);
        request.set_num_q_heads(2);
        request.set_transport(transport);
        Request goal = request;
        (goal.*set_size)(123456789);  // has no effect
        (goal.*set_goal)(budget_bytes);
        const Response got = Estimate(goal);
        ASSERT_EQ(got.answer_case(), answer_case);
        const int64_t size = (got.*answer)();
        EXPECT_TRUE(got.fits());
        ASSERT_GT(size, 0);
        CostLimits limits = limits_;
        if (budget_bytes != 0) limits.budget_bytes = budget_bytes;
        (request.*set_size)(size);
        Response same = EstimateMemory(request, engine_, limits).value();
        EXPECT_TRUE(same.fits());
        EXPECT_EQ(got.peak_bytes(), same.peak_bytes());
        EXPECT_EQ(got.flops(), same.flops());
        (request.*set_size)(size + 1);
        const Response next = EstimateMemory(request, engine_, limits).value();
        EXPECT_FALSE(next.fits());
        EXPECT_EQ(got.limiting_factor(), next.limiting_factor());
      }
    }
  }
}

TEST_F(EstimateTest, NotEvenOneMayFit) {
  v1::MemoryEstimateRequest request;
  request.set_max_seq_len_for_budget_bytes(1);
  const auto got = Estimate(request);
  EXPECT_EQ(got.answer_case(), v1::MemoryEstimateResponse::kMaxSeqLen);
  EXPECT_EQ(got.max_seq_len(), 0);
  EXPECT_FALSE(got.fits());
  EXPECT_EQ(got.limiting_factor(), "memory_budget");
  // The figures are those of one token.
  EXPECT_EQ(got.input_bytes(), 3 * 128 * 4);
}

TEST_F(EstimateTest, EveryProblemHasAnAnswer) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(int64_t{1} << 62);
  const auto tokens = Estimate(request);
  EXPECT_FALSE(tokens.fits());
  EXPECT_EQ(tokens.limiting_factor(), "message_size");
  EXPECT_EQ(tokens.peak_bytes(), std::numeric_limits<int64_t>::max());
  request.set_seq_len(8);
  request.set_concurrency(int64_t{1} << 60);
  const auto calls = Estimate(request);
  EXPECT_FALSE(calls.fits());
  EXPECT_EQ(calls.limiting_factor(), "max_in_flight");
  EXPECT_EQ(calls.peak_bytes(), std::numeric_limits<int64_t>::max());
  EXPECT_EQ(calls.input_bytes(), 3 * 8 * 128 * 4);
}

TEST_F(EstimateTest, RefusesByName) {
  using Request = v1::MemoryEstimateRequest;
  struct Case {
    const char* field;
    std::function<void(Request&)> spoil;
  };
  const Case cases[] = {
      {"seq_len", [](Request& r) { r.set_seq_len(0); }},
      {"seq_len", [](Request& r) { r.set_seq_len(-1); }},
      {"seq_len",
       [](Request& r) {
         r.set_seq_len(0);
         r.set_q_len(5);
       }},
      {"dimensions", [](Request& r) { r.set_dimensions(5000); }},
      {"head_dim", [](Request& r) { r.set_head_dim(5000); }},
      {"v_head_dim", [](Request& r) { r.set_v_head_dim(5000); }},
      {"num_q_heads",
       [](Request& r) {
         r.set_num_q_heads(3);
         r.set_num_kv_heads(2);
       }},
      {"batch", [](Request& r) { r.set_batch(-1); }},
      {"threads", [](Request& r) { r.set_threads(-1); }},
      {"dtype", [](Request& r) { r.set_dtype(v1::DATA_TYPE_BOOL); }},
      {"dtype", [](Request& r) { r.set_dtype(v1::DataType(9)); }},
      {"transport", [](Request& r) { r.set_transport(v1::Transport(9)); }},
      // The axes have no names in this request, so the errors do not depend on
      // the layout.
      {"num_q_heads",
       [](Request& r) {
         r.mutable_options()->set_layout(v1::LAYOUT_BSHD);
         r.set_num_q_heads(3);
         r.set_num_kv_heads(2);
       }},
      {"options.output_region",
       [](Request& r) { r.mutable_options()->mutable_output_region(); }},
      {"options.lse_region",
       [](Request& r) { r.mutable_options()->mutable_lse_region(); }},
      {"options.bias.data",
       [](Request& r) {
         *r.mutable_options()->mutable_bias() = DataTensor({10}, 1);
       }},
      {"options.mask.data",
       [](Request& r) {
         *r.mutable_options()->mutable_mask() = MaskTensor({10}, 1);
       }},
      {"options.bias.shape[0]",
       [](Request& r) {
         r.mutable_options()->mutable_bias()->set_dtype(v1::DATA_TYPE_F16);
         r.mutable_options()->mutable_bias()->add_shape(9);
       }},
      {"options.bias.dtype",
       [](Request& r) { r.mutable_options()->mutable_bias()->add_shape(10); }},
      {"batch",
       [](Request& r) {
         r.set_batch(2);
         r.mutable_options()->add_cu_seqlens_q(0);
         r.mutable_options()->add_cu_seqlens_k(0);
       }},
      {"options.cu_seqlens_q[1]",
       [](Request& r) {
         for (const int64_t offset : {0, 9}) {
           r.mutable_options()->add_cu_seqlens_q(offset);
           r.mutable_options()->add_cu_seqlens_k(offset);
         }
       }},
      {"options.scale",
       [](Request& r) {
         r.mutable_options()->set_scale(std::numeric_limits<float>::infinity());
       }},
      {"max_batch_for_budget_bytes",
       [](Request& r) { r.set_max_batch_for_budget_bytes(-1); }},
      {"max_seq_len_for_budget_bytes",
       [](Request& r) { r.set_max_seq_len_for_budget_bytes(-1); }},
      {"max_concurrency_for_budget_bytes",
       [](Request& r) { r.set_max_concurrency_for_budget_bytes(-1); }},
      {"kv_len",
       [](Request& r) {
         r.set_max_seq_len_for_budget_bytes(1);
         r.set_q_len(1);
         r.set_kv_len(1);
       }},
      {"options.key_lengths",
       [](Request& r) {
         r.set_max_batch_for_budget_bytes(1);
         r.mutable_options()->add_key_lengths(1);
       }},
      {"seq_len",
       [](Request& r) {
         r.set_seq_len(0);
         r.set_max_concurrency_for_budget_bytes(1);
       }},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.field);
    Request request;
    request.set_seq_len(10);
    test.spoil(request);
    const Refusal refusal =
        RefusalOf(EstimateMemory(request, engine_, limits_).status());
    EXPECT_EQ(refusal.code,
              static_cast<int>(absl::StatusCode::kInvalidArgument))
        << refusal.message;
    EXPECT_EQ(refusal.field, test.field) << refusal.message;
  }
}

TEST_F(EstimateTest, AContainerIsPlannedForNoOtherGoal) {
  v1::MemoryEstimateRequest request;
  request.set_seq_len(64);
  const auto limit_bytes = [&]() -> absl::StatusOr<int64_t> {
    const auto memory = EstimateContainer(request, engine_, limits_);
    if (!memory.ok()) return memory.status();
    return memory->limit_bytes;
  };
  const auto without_goal = limit_bytes();
  ASSERT_TRUE(without_goal.ok()) << without_goal.status();
  request.mutable_estimate();
  ASSERT_TRUE(limit_bytes().ok()) << limit_bytes().status();
  EXPECT_EQ(*limit_bytes(), *without_goal);
  const auto refused_field = [&] {
    EXPECT_EQ(limit_bytes().status().code(),
              absl::StatusCode::kInvalidArgument);
    return FieldOf(limit_bytes().status());
  };
  request.set_max_seq_len_for_budget_bytes(1 << 30);
  EXPECT_EQ(refused_field(), "max_seq_len_for_budget_bytes");
  request.set_max_batch_for_budget_bytes(0);
  EXPECT_EQ(refused_field(), "max_batch_for_budget_bytes");
  request.set_max_concurrency_for_budget_bytes(-1);
  EXPECT_EQ(refused_field(), "max_concurrency_for_budget_bytes");
}

}  // namespace
}  // namespace attnd::server
