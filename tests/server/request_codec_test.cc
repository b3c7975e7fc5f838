// What the codec refuses, by code and field, and what it makes of good
// requests.
#include "server/request_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "server/admission.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using absl::StatusCode;

constexpr auto kInvalid = StatusCode::kInvalidArgument;
constexpr auto kUnbuilt = StatusCode::kUnimplemented;

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

struct RefusalCase {
  const char* field;
  StatusCode code;
  std::function<void(v1::AttentionRequest&)> spoil;
};

using R = v1::AttentionRequest;

// Shorthands for the table.
v1::AttentionOptions& Opt(R& r) { return *r.mutable_options(); }
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// NOLINTNEXTLINE(bugprone-throwing-static-initialization): fails the test run
const RefusalCase kCases[] = {
    {"query", kInvalid, [](R& r) { r.clear_query(); }},
    {"key", kInvalid, [](R& r) { r.clear_key(); }},
    {"value", kInvalid, [](R& r) { r.clear_value(); }},
    {"query", kInvalid, [](R& r) { r.mutable_query()->clear_payload(); }},
    {"query.data", kInvalid,
     [](R& r) { r.mutable_query()->mutable_data()->pop_back(); }},
    {"key.data", kInvalid,
     [](R& r) { r.mutable_key()->mutable_data()->push_back('x'); }},
    {"value.data", kInvalid, [](R& r) { r.mutable_value()->set_data(""); }},
    {"value.values", kInvalid,
     [](R& r) {
       *r.mutable_value() = ValuesTensor({2, 2, 7, 3}, 1);
       r.mutable_value()->mutable_values()->add_values(0);
     }},
    {"query.dtype", kInvalid, [](R& r) { r.mutable_query()->clear_dtype(); }},
    {"query.dtype", kUnbuilt,
     [](R& r) { r.mutable_query()->set_dtype(v1::DATA_TYPE_F16); }},
    {"key.dtype", kUnbuilt,
     [](R& r) { r.mutable_key()->set_dtype(v1::DATA_TYPE_BF16); }},
    {"value.dtype", kInvalid,
     [](R& r) { r.mutable_value()->set_dtype(v1::DATA_TYPE_BOOL); }},
    {"value.dtype", kInvalid,
     [](R& r) { r.mutable_value()->set_dtype(v1::DataType(77)); }},
    {"query.dtype", kInvalid,
     [](R& r) {
       *r.mutable_query() = ValuesTensor({2, 4, 5, 8}, 1);
       r.mutable_query()->set_dtype(v1::DATA_TYPE_F16);
     }},
    {"query.shared_memory", kUnbuilt,
     [](R& r) {
       r.mutable_query()->mutable_shared_memory()->set_offset_bytes(64);
     }},
    // The query's rank is the one that counts.
    {"key.shape", kInvalid,
     [](R& r) { r.mutable_query()->mutable_shape()->RemoveLast(); }},
    {"query.shape", kInvalid,
     [](R& r) { r.mutable_query()->mutable_shape()->Clear(); }},
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
    {"options.layout", kUnbuilt,
     [](R& r) { Opt(r).set_layout(v1::LAYOUT_BSHD); }},
    {"options.causal", kInvalid,
     [](R& r) { Opt(r).set_causal(v1::Causal(9)); }},
    {"options.query_offsets", kUnbuilt,
     [](R& r) { Opt(r).add_query_offsets(1); }},
    {"options.window_left", kInvalid, [](R& r) { Opt(r).set_window_left(-1); }},
    {"options.window_left", kUnbuilt, [](R& r) { Opt(r).set_window_left(0); }},
    {"options.window_right", kUnbuilt,
     [](R& r) { Opt(r).set_window_right(3); }},
    {"options.logits_soft_cap", kInvalid,
     [](R& r) { Opt(r).set_logits_soft_cap(kInf); }},
    {"options.logits_soft_cap", kUnbuilt,
     [](R& r) { Opt(r).set_logits_soft_cap(30); }},
    {"options.alibi_slopes[1]", kInvalid,
     [](R& r) {
       Opt(r).add_alibi_slopes(1);
       Opt(r).add_alibi_slopes(kNan);
     }},
    {"options.alibi_slopes", kUnbuilt,
     [](R& r) { Opt(r).add_alibi_slopes(1); }},
    {"options.sink_logits[0]", kInvalid,
     [](R& r) { Opt(r).add_sink_logits(kInf); }},
    {"options.sink_logits[0]", kInvalid,
     [](R& r) { Opt(r).add_sink_logits(kNan); }},
    {"options.sink_logits", kUnbuilt,
     [](R& r) { Opt(r).add_sink_logits(-kInf); }},
    {"options.bias.dtype", kInvalid, [](R& r) { Opt(r).mutable_bias(); }},
    {"options.bias.dtype", kInvalid,
     [](R& r) {
       *Opt(r).mutable_bias() = ValuesTensor({5, 7}, 1);
       Opt(r).mutable_bias()->set_dtype(v1::DATA_TYPE_F16);
     }},
    {"options.bias", kUnbuilt,
     [](R& r) {
       *Opt(r).mutable_bias() = ValuesTensor({5, 7}, 1);
       Opt(r).mutable_bias()->clear_dtype();
     }},
    {"options.bias", kUnbuilt,
     [](R& r) {
       *Opt(r).mutable_bias() = DataTensor({5, 7}, 1);
     }},
    {"options.mask.dtype", kInvalid,
     [](R& r) {
       *Opt(r).mutable_mask() = DataTensor({5, 7}, 1);
     }},
    {"options.mask", kUnbuilt,
     [](R& r) { Opt(r).mutable_mask()->set_dtype(v1::DATA_TYPE_BOOL); }},
    {"options.query_lengths[0]", kInvalid,
     [](R& r) { Opt(r).add_query_lengths(-1); }},
    {"options.query_lengths", kUnbuilt,
     [](R& r) { Opt(r).add_query_lengths(1); }},
    {"options.key_lengths", kUnbuilt, [](R& r) { Opt(r).add_key_lengths(1); }},
    {"options.cu_seqlens_q", kUnbuilt,
     [](R& r) { Opt(r).add_cu_seqlens_q(0); }},
    {"options.cu_seqlens_k", kUnbuilt,
     [](R& r) { Opt(r).add_cu_seqlens_k(0); }},
    {"options.output_dtype", kInvalid,
     [](R& r) { Opt(r).set_output_dtype(v1::DATA_TYPE_BOOL); }},
    {"options.output_dtype", kUnbuilt,
     [](R& r) { Opt(r).set_output_dtype(v1::DATA_TYPE_BF16); }},
    {"options.precision", kInvalid,
     [](R& r) { Opt(r).set_precision(v1::Precision(9)); }},
    {"options.precision", kUnbuilt,
     [](R& r) { Opt(r).set_precision(v1::PRECISION_BF16); }},
    {"options.output_region", kUnbuilt,
     [](R& r) { Opt(r).mutable_output_region(); }},
    {"options.lse_region", kUnbuilt, [](R& r) { Opt(r).mutable_lse_region(); }},
    // What is wrong is said before what is missing.
    {"options.scale", kInvalid,
     [](R& r) {
       Opt(r).set_scale(kNan);
       Opt(r).set_block_size(-1);
     }},
    {"value", kInvalid,
     [](R& r) {
       r.mutable_query()->set_dtype(v1::DATA_TYPE_F16);
       r.clear_value();
     }},
};

TEST(RequestCodecTest, RefusesByName) {
  for (const RefusalCase& test : kCases) {
    SCOPED_TRACE(test.field);
    v1::AttentionRequest request = GoodAttention();
    test.spoil(request);
    const Refusal refusal = RefusalOf(Decode(request).status());
    EXPECT_EQ(refusal.code, static_cast<int>(test.code)) << refusal.message;
    EXPECT_EQ(refusal.field, test.field) << refusal.message;
  }
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
