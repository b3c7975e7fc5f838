// Tests which requests the codec refuses, with which code and field, and how it
// decodes valid requests.
#include "server/codec/request_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "server/codec/message_parser.h"
#include "server/memory/admission.h"
#include "tests/server/message_tools.h"
#include "tests/support/numbers.h"
#include "wire/shm_protocol.h"

namespace attnd::server {
namespace {

using absl::StatusCode;

constexpr auto kInvalid = StatusCode::kInvalidArgument;

template <typename Request>
absl::StatusOr<DecodedRequest> Decode(const Request& request) {
  const ReceivedMessage received =
      InSlices(request.SerializeAsString(), 1000, 1);
  Admission admission(1LL << 40, 1);
  Admission::Reservation reservation = *admission.Admit(0);
  Request header;
  const auto split = ParseMessage(received, reservation, header);
  if (!split.ok()) return split.status();
  return DecodeRequest(AttentionTensors::Of(header), *split);
}

template <typename Request>
struct RefusalCase {
  const char* field;
  StatusCode code;
  std::function<void(Request&)> spoil;
};

using R = v1::AttentionRequest;
using B = v1::AttentionBackwardRequest;

// These functions shorten the tables.
template <typename Request>
v1::AttentionOptions& Opt(Request& r) {
  return *r.mutable_options();
}
void Place(v1::SharedMemory& place, int64_t offset_bytes) {
  place.set_handle(std::string(kHandleBytes, 'h'));
  place.set_offset_bytes(offset_bytes);
}

// NOLINTNEXTLINE(bugprone-throwing-static-initialization): fails the test run
const RefusalCase<R> kCases[] = {
    {"query", kInvalid, [](R& r) { r.clear_query(); }},
    {"key", kInvalid, [](R& r) { r.clear_key(); }},
    {"value", kInvalid, [](R& r) { r.clear_value(); }},
    {"query", kInvalid, [](R& r) { r.mutable_query()->clear_payload(); }},
    {"query.data", kInvalid,
     [](R& r) { r.mutable_query()->mutable_data()->pop_back(); }},
    {"key.data", kInvalid,
     [](R& r) { r.mutable_key()->mutable_data()->push_back('x'); }},
    {"value.data", kInvalid, [](R& r) { r.mutable_value()->set_data(""); }},
    // Half as many bytes would be correct.
    {"value.data", kInvalid,
     [](R& r) { r.mutable_value()->set_dtype(v1::DATA_TYPE_F16); }},
    {"value.values", kInvalid,
     [](R& r) {
       *r.mutable_value() = ValuesTensor({2, 2, 7, 3}, 1);
       r.mutable_value()->mutable_values()->add_values(0);
     }},
    {"query.dtype", kInvalid, [](R& r) { r.mutable_query()->clear_dtype(); }},
    {"value.dtype", kInvalid,
     [](R& r) { r.mutable_value()->set_dtype(v1::DATA_TYPE_BOOL); }},
    {"value.dtype", kInvalid,
     [](R& r) { r.mutable_value()->set_dtype(v1::DataType(77)); }},
    {"query.dtype", kInvalid,
     [](R& r) {
       *r.mutable_query() = ValuesTensor({2, 4, 5, 8}, 1);
       r.mutable_query()->set_dtype(v1::DATA_TYPE_F16);
     }},
    {"query.shared_memory.handle", kInvalid,
     [](R& r) {
       r.mutable_query()->mutable_shared_memory()->set_handle("short");
     }},
    {"key.shared_memory.offset_bytes", kInvalid,
     [](R& r) { Place(*r.mutable_key()->mutable_shared_memory(), 32); }},
    {"key.shared_memory.offset_bytes", kInvalid,
     [](R& r) { Place(*r.mutable_key()->mutable_shared_memory(), -64); }},
    {"key.shared_memory.offset_bytes", kInvalid,
     [](R& r) { Place(*r.mutable_key()->mutable_shared_memory(), INT64_MAX); }},
    // The rank of the query determines the rank that the others must have.
    {"key.shape", kInvalid,
     [](R& r) { r.mutable_query()->mutable_shape()->RemoveLast(); }},
    {"query.shape", kInvalid,
     [](R& r) { r.mutable_query()->mutable_shape()->Clear(); }},
    {"query.shape", kInvalid,
     [](R& r) { r.mutable_query()->mutable_shape()->Resize(1 << 17, 1); }},
    {"key.shape[3]", kInvalid, [](R& r) { r.mutable_key()->set_shape(3, 9); }},
    {"key.shape[2]", kInvalid, [](R& r) { r.mutable_key()->set_shape(2, -7); }},
    {"query.shape[1]", kInvalid,
     [](R& r) { r.mutable_query()->set_shape(1, 5); }},
    {"query.shape", kInvalid,
     [](R& r) { r.mutable_query()->set_shape(2, INT64_MAX); }},
    {"options.scale", kInvalid, [](R& r) { Opt(r).set_scale(kNan); }},
    {"options.temperature", kInvalid, [](R& r) { Opt(r).set_temperature(0); }},
    {"options.block_size", kInvalid, [](R& r) { Opt(r).set_block_size(-1); }},
    {"options.layout", kInvalid,
     [](R& r) { Opt(r).set_layout(v1::Layout(9)); }},
    {"key.shape[0]", kInvalid,
     [](R& r) {
       Opt(r).set_layout(v1::LAYOUT_BSHD);
       r.mutable_key()->set_shape(0, 1);
     }},
    {"options.causal", kInvalid,
     [](R& r) { Opt(r).set_causal(v1::Causal(9)); }},
    {"options.query_offsets", kInvalid,
     [](R& r) {
       for (int i = 0; i < 3; ++i) Opt(r).add_query_offsets(1);
     }},
    {"options.query_offsets[0]", kInvalid,
     [](R& r) { Opt(r).add_query_offsets(INT64_MIN); }},
    {"options.query_offsets", kInvalid,
     [](R& r) { Opt(r).mutable_query_offsets()->Resize(1 << 17, 0); }},
    {"options.window_left", kInvalid, [](R& r) { Opt(r).set_window_left(-1); }},
    {"options.window_right", kInvalid,
     [](R& r) { Opt(r).set_window_right(-1); }},
    {"options.logits_soft_cap", kInvalid,
     [](R& r) { Opt(r).set_logits_soft_cap(kInfinity); }},
    {"options.logits_soft_cap", kInvalid,
     [](R& r) { Opt(r).set_logits_soft_cap(0); }},
    {"options.alibi_slopes[1]", kInvalid,
     [](R& r) {
       Opt(r).mutable_alibi_slopes()->Resize(4, 1);
       Opt(r).set_alibi_slopes(1, kNan);
     }},
    {"options.alibi_slopes", kInvalid,
     [](R& r) { Opt(r).add_alibi_slopes(1); }},
    {"options.sink_logits[0]", kInvalid,
     [](R& r) { Opt(r).mutable_sink_logits()->Resize(4, kInfinity); }},
    {"options.sink_logits[0]", kInvalid,
     [](R& r) { Opt(r).mutable_sink_logits()->Resize(4, kNan); }},
    {"options.sink_logits", kInvalid,
     [](R& r) { Opt(r).mutable_sink_logits()->Resize(3, 0); }},
    {"options.bias.dtype", kInvalid, [](R& r) { Opt(r).mutable_bias(); }},
    {"options.bias.dtype", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = ValuesTensor({5, 7}, 1);
       Opt(r).mutable_bias()->set_dtype(v1::DATA_TYPE_F16);
     }},
    {"options.bias.dtype", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = MaskTensor({5, 7}, 1);
     }},
    {"options.bias.shape[0]", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = DataTensor({4, 7}, 1);
     }},
    {"options.bias.shape", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = DataTensor({1, 1, 1, 5, 7}, 1);
     }},
    {"options.bias.data", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = DataTensor({5, 7}, 1);
       Opt(r).mutable_bias()->mutable_data()->pop_back();
     }},
    {"options.bias.values", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = ValuesTensor({5, 7}, 1);
       Opt(r).mutable_bias()->mutable_values()->mutable_values()->RemoveLast();
     }},
    {"options.bias", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = DataTensor({5, 7}, 1);
       Opt(r).mutable_bias()->clear_payload();
     }},
    {"options.bias.shared_memory.handle", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = DataTensor({5, 7}, 1);
       Opt(r).mutable_bias()->mutable_shared_memory();
     }},
    {"options.mask.dtype", kInvalid,
     [](R& r) {
       *Opt(r).mutable_mask() = DataTensor({5, 7}, 1);
     }},
    {"options.mask.dtype", kInvalid,
     [](R& r) {
       *Opt(r).mutable_mask() = ValuesTensor({5, 7}, 1);
     }},
    {"options.mask.values", kInvalid,
     [](R& r) {
       *Opt(r).mutable_mask() = ValuesTensor({5, 7}, 1);
       Opt(r).mutable_mask()->set_dtype(v1::DATA_TYPE_BOOL);
     }},
    {"options.mask.shape[0]", kInvalid,
     [](R& r) {
       *Opt(r).mutable_mask() = MaskTensor({3, 5, 7}, 1);
     }},
    {"options.mask.data", kInvalid,
     [](R& r) {
       *Opt(r).mutable_mask() = MaskTensor({5, 7}, 1);
       Opt(r).mutable_mask()->mutable_data()->push_back(1);
     }},
    {"options.mask", kInvalid,
     [](R& r) { Opt(r).mutable_mask()->set_dtype(v1::DATA_TYPE_BOOL); }},
    {"options.query_lengths[0]", kInvalid,
     [](R& r) { Opt(r).mutable_query_lengths()->Resize(2, -1); }},
    {"options.query_lengths[0]", kInvalid,
     [](R& r) { Opt(r).mutable_query_lengths()->Resize(2, 6); }},
    {"options.key_lengths", kInvalid, [](R& r) { Opt(r).add_key_lengths(1); }},
    {"options.cu_seqlens_k", kInvalid,
     [](R& r) { Opt(r).add_cu_seqlens_q(0); }},
    {"options.cu_seqlens_q", kInvalid,
     [](R& r) { Opt(r).add_cu_seqlens_k(0); }},
    {"query.shape", kInvalid,
     [](R& r) {
       Opt(r).add_cu_seqlens_q(0);
       Opt(r).add_cu_seqlens_k(0);
     }},
    {"options.output_dtype", kInvalid,
     [](R& r) { Opt(r).set_output_dtype(v1::DATA_TYPE_BOOL); }},
    {"options.output_dtype", kInvalid,
     [](R& r) {
       *r.mutable_query() = ValuesTensor({2, 4, 5, 8}, 1);
       Opt(r).set_output_dtype(v1::DATA_TYPE_F16);
     }},
    {"options.precision", kInvalid,
     [](R& r) { Opt(r).set_precision(v1::Precision(9)); }},
    // The answer must go to shared memory if and only if the query is there.
    {"options.output_region", kInvalid,
     [](R& r) { Place(*Opt(r).mutable_output_region(), 0); }},
    {"options.output_region", kInvalid,
     [](R& r) {
       Place(*r.mutable_key()->mutable_shared_memory(), 0);
       Place(*Opt(r).mutable_output_region(), 0);
     }},
    {"options.lse_region", kInvalid,
     [](R& r) {
       Opt(r).set_return_lse(true);
       Place(*Opt(r).mutable_lse_region(), 0);
     }},
    {"options.output_region", kInvalid,
     [](R& r) { Place(*r.mutable_query()->mutable_shared_memory(), 0); }},
    {"options.output_region.offset_bytes", kInvalid,
     [](R& r) {
       Place(*r.mutable_query()->mutable_shared_memory(), 0);
       Place(*Opt(r).mutable_output_region(), 1);
     }},
    {"options.lse_region", kInvalid,
     [](R& r) {
       Place(*r.mutable_query()->mutable_shared_memory(), 0);
       Place(*Opt(r).mutable_output_region(), 0);
       Opt(r).set_return_lse(true);
     }},
    {"options.lse_region", kInvalid,
     [](R& r) {
       Place(*r.mutable_query()->mutable_shared_memory(), 0);
       Place(*Opt(r).mutable_output_region(), 0);
       Place(*Opt(r).mutable_lse_region(), 0);
     }},
};

// These cases are refused by AttentionBackward in addition to those above.
// NOLINTNEXTLINE(bugprone-throwing-static-initialization): fails the test run
const RefusalCase<B> kBackwardCases[] = {
    {"query", kInvalid, [](B& r) { r.clear_query(); }},
    {"output", kInvalid, [](B& r) { r.clear_output(); }},
    {"lse", kInvalid, [](B& r) { r.clear_lse(); }},
    {"grad_output", kInvalid, [](B& r) { r.clear_grad_output(); }},
    {"lse", kInvalid, [](B& r) { r.mutable_lse()->clear_payload(); }},
    {"query.dtype", kInvalid,
     [](B& r) {
       *r.mutable_query() = HalfTensor(v1::DATA_TYPE_F16, {2, 4, 5, 8}, 1);
     }},
    {"value.dtype", kInvalid,
     [](B& r) {
       *r.mutable_value() = HalfTensor(v1::DATA_TYPE_BF16, {2, 2, 7, 3}, 1);
     }},
    {"output.dtype", kInvalid,
     [](B& r) { r.mutable_output()->set_dtype(v1::DATA_TYPE_F16); }},
    {"lse.dtype", kInvalid,
     [](B& r) { r.mutable_lse()->set_dtype(v1::DATA_TYPE_UNSPECIFIED); }},
    {"grad_output.dtype", kInvalid,
     [](B& r) { r.mutable_grad_output()->set_dtype(v1::DATA_TYPE_BF16); }},
    {"output.shape[3]", kInvalid,
     [](B& r) { r.mutable_output()->set_shape(3, 8); }},
    {"lse.shape", kInvalid, [](B& r) { r.mutable_lse()->add_shape(1); }},
    {"grad_output.shape[0]", kInvalid,
     [](B& r) { r.mutable_grad_output()->set_shape(0, 1); }},
    {"output.data", kInvalid,
     [](B& r) { r.mutable_output()->mutable_data()->pop_back(); }},
    {"grad_output.data", kInvalid,
     [](B& r) { r.mutable_grad_output()->set_data(""); }},
    {"options.output_dtype", kInvalid,
     [](B& r) { Opt(r).set_output_dtype(v1::DATA_TYPE_BF16); }},
    {"options.precision", kInvalid,
     [](B& r) { Opt(r).set_precision(v1::PRECISION_BF16); }},
    {"options.window_left", kInvalid, [](B& r) { Opt(r).set_window_left(-1); }},
    // AttentionBackward does not support shared memory.
    {"key.shared_memory", kInvalid,
     [](B& r) { r.mutable_key()->mutable_shared_memory(); }},
    {"grad_output.shared_memory", kInvalid,
     [](B& r) { r.mutable_grad_output()->mutable_shared_memory(); }},
    {"options.output_region", kInvalid,
     [](B& r) { Opt(r).mutable_output_region(); }},
    {"options.lse_region", kInvalid, [](B& r) { Opt(r).mutable_lse_region(); }},
};

template <typename Request>
void ExpectRefusal(const RefusalCase<Request>& test, Request request) {
  SCOPED_TRACE(test.field);
  test.spoil(request);
  const Refusal refusal = RefusalOf(Decode(request).status());
  EXPECT_EQ(refusal.code, static_cast<int>(test.code)) << refusal.message;
  EXPECT_EQ(refusal.field, test.field) << refusal.message;
}

TEST(RequestCodecTest, RefusesByName) {
  for (const auto& test : kCases) ExpectRefusal(test, GoodAttention());
}

TEST(RequestCodecTest, RefusesGradientsByName) {
  ASSERT_TRUE(Decode(GoodBackward()).ok());
  for (const auto& test : kBackwardCases) ExpectRefusal(test, GoodBackward());
}

TEST(RequestCodecTest, WrongByteCountsSayWhatWasExpected) {
  v1::AttentionRequest request = GoodAttention();
  request.mutable_query()->set_data("12345");
  EXPECT_EQ(RefusalOf(Decode(request).status()).message,
            "query.data: expected 1280 bytes for shape [2, 4, 5, 8] of F32, "
            "got 5 bytes");
}

TEST(RequestCodecTest, DecodesWhatItServes) {
  v1::AttentionRequest request = GoodAttention();
  Opt(request).set_causal(v1::CAUSAL_BOTTOM_RIGHT);
  Opt(request).set_return_lse(true);
  Opt(request).set_scale(2);
  Opt(request).set_temperature(4);
  Opt(request).set_layout(v1::LAYOUT_BHSD);
  Opt(request).set_precision(v1::PRECISION_F32);
  Opt(request).set_output_dtype(v1::DATA_TYPE_F32);
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionParams& params = decoded->problem.params();
  EXPECT_EQ(params.batch, 2);
  EXPECT_EQ(params.num_q_heads, 4);
  EXPECT_EQ(params.num_kv_heads, 2);
  EXPECT_EQ(params.q_len, 5);
  EXPECT_EQ(params.kv_len, 7);
  EXPECT_EQ(params.head_dim, 8);
  EXPECT_EQ(params.v_head_dim, 3);
  EXPECT_EQ(params.causal, Causal::kBottomRight);
  EXPECT_FLOAT_EQ(params.score_scale, 0.5F);
  EXPECT_TRUE(params.return_lse);
  EXPECT_EQ(decoded->kind, PayloadKind::kData);
}

TEST(RequestCodecTest, DecodesEveryOption) {
  v1::AttentionRequest request;
  *request.mutable_query() = HalfTensor(v1::DATA_TYPE_F16, {2, 5, 4, 8}, 1);
  *request.mutable_key() = HalfTensor(v1::DATA_TYPE_BF16, {2, 7, 2, 8}, 2);
  *request.mutable_value() = ValuesTensor({2, 7, 2, 3}, 3);
  v1::AttentionOptions& in = Opt(request);
  in.set_layout(v1::LAYOUT_BSHD);
  in.set_precision(v1::PRECISION_BF16);
  in.set_output_dtype(v1::DATA_TYPE_BF16);
  in.add_query_offsets(-3);
  in.add_query_offsets(4);
  in.set_window_left(0);
  in.set_window_right(9);
  in.set_logits_soft_cap(30);
  in.mutable_alibi_slopes()->Resize(4, 0.5F);
  in.mutable_sink_logits()->Resize(4, -kInfinity);
  *in.mutable_bias() = HalfTensor(v1::DATA_TYPE_F16, {4, 1, 7}, 4);
  *in.mutable_mask() = MaskTensor({2, 1, 5, 7}, 5);
  in.mutable_query_lengths()->Resize(2, 5);
  in.mutable_key_lengths()->Resize(2, 0);
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttentionProblem& problem = decoded->problem;
  const AttentionParams& params = problem.params();
  EXPECT_EQ(params.num_q_heads, 4);
  EXPECT_EQ(params.q_len, 5);
  EXPECT_EQ(params.query_dtype, DataType::kF16);
  EXPECT_EQ(params.key_dtype, DataType::kBF16);
  EXPECT_EQ(params.value_dtype, DataType::kF32);
  EXPECT_EQ(params.output_dtype, DataType::kBF16);
  EXPECT_EQ(params.bias_dtype, DataType::kF16);
  EXPECT_EQ(params.layout, Layout::kBshd);
  EXPECT_EQ(params.precision, Precision::kBF16);
  EXPECT_EQ(params.soft_cap, 30);
  const AttentionOptions& options = problem.options();
  EXPECT_EQ(options.query_offsets, (std::vector<int64_t>{-3, 4}));
  EXPECT_EQ(options.window_left, 0);
  EXPECT_EQ(options.window_right, 9);
  EXPECT_EQ(options.alibi_slopes, std::vector<float>(4, 0.5F));
  EXPECT_EQ(options.sink_logits, std::vector<float>(4, -kInfinity));
  EXPECT_EQ(options.query_lengths, std::vector<int64_t>(2, 5));
  EXPECT_EQ(options.key_lengths, std::vector<int64_t>(2, 0));
  EXPECT_EQ(decoded->bytes[kQuery], 2 * 5 * 4 * 8 * 2);
  EXPECT_EQ(decoded->bytes[kValue], 2 * 7 * 2 * 3 * 4);
  EXPECT_EQ(decoded->bytes[kBias], 4 * 7 * 2);
  EXPECT_EQ(decoded->bytes[kMask], 2 * 5 * 7);
  EXPECT_EQ(decoded->kind, PayloadKind::kData);
}

TEST(RequestCodecTest, DecodesARaggedBatch) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({4, 5, 8}, 1);
  *request.mutable_key() = DataTensor({2, 7, 8}, 2);
  *request.mutable_value() = DataTensor({2, 7, 3}, 3);
  for (const int64_t offset : {0, 2, 2, 5}) {
    Opt(request).add_cu_seqlens_q(offset);
  }
  for (const int64_t offset : {0, 0, 6, 7}) {
    Opt(request).add_cu_seqlens_k(offset);
  }
  const auto decoded = Decode(request);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->problem.params().batch, 3);
  EXPECT_EQ(decoded->problem.visibility().Entry(2).q_len, 3);
}

TEST(RequestCodecTest, TheFirstTensorsPayloadDecidesTheAnswers) {
  v1::AttentionRequest request = GoodAttention();
  *request.mutable_key() = ValuesTensor({2, 2, 7, 8}, 2);
  EXPECT_EQ(Decode(request)->kind, PayloadKind::kData);
  *request.mutable_query() = ValuesTensor({2, 4, 5, 8}, 2);
  EXPECT_EQ(Decode(request)->kind, PayloadKind::kValues);
}

TEST(RequestCodecTest, SelfAttentionSpeaksOfItsSequence) {
  v1::SelfAttentionRequest request;
  EXPECT_EQ(RefusalOf(Decode(request).status()).field, "sequence");
  *request.mutable_sequence() = DataTensor({4, 8}, 1);
  EXPECT_TRUE(Decode(request).ok());
  request.mutable_sequence()->mutable_data()->pop_back();
  EXPECT_EQ(RefusalOf(Decode(request).status()).field, "sequence.data");
  request.mutable_sequence()->set_shape(1, 0);
  const Refusal refusal = RefusalOf(Decode(request).status());
  EXPECT_EQ(refusal.field, "sequence.shape[1]");
  EXPECT_EQ(refusal.message.rfind("sequence.shape[1]: expected", 0), 0U);
}

TEST(RequestCodecTest, CrossAttentionSpeaksOfQueriesAndKvSequence) {
  v1::CrossAttentionRequest request;
  EXPECT_EQ(RefusalOf(Decode(request).status()).field, "queries");
  *request.mutable_queries() = DataTensor({4, 8}, 1);
  EXPECT_EQ(RefusalOf(Decode(request).status()).field, "kv_sequence");
  *request.mutable_kv_sequence() = DataTensor({9, 8}, 1);
  EXPECT_TRUE(Decode(request).ok());
  *request.mutable_kv_sequence() = DataTensor({9, 7}, 1);
  EXPECT_EQ(RefusalOf(Decode(request).status()).field, "kv_sequence.shape[1]");
  request.mutable_queries()->set_shape(1, 0);
  EXPECT_EQ(RefusalOf(Decode(request).status()).field, "queries.shape[1]");
}

}  // namespace
}  // namespace attnd::server
