#include "server/admin/message_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <string>

#include "attnd/v1/attention.pb.h"
#include "base/field_error.h"
#include "google/protobuf/util/message_differencer.h"

namespace attnd::server {
namespace {

using google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Params = std::multimap<std::string, std::string>;

v1::MemoryEstimateRequest FromQuery(const Params& params) {
  v1::MemoryEstimateRequest request;
  const absl::Status status = ParseQuery(params, request);
  EXPECT_TRUE(status.ok()) << status;
  return request;
}

absl::Status QueryError(const Params& params) {
  v1::MemoryEstimateRequest request;
  absl::Status status = ParseQuery(params, request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return status;
}

absl::Status JsonError(const std::string& json) {
  v1::MemoryEstimateRequest request;
  absl::Status status = ParseJson(json, request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
  return status;
}

TEST(MessageTextTest, AQuerySetsFieldsOfEveryKind) {
  v1::MemoryEstimateRequest expected;
  expected.set_seq_len(std::numeric_limits<int64_t>::max());
  expected.set_dtype(v1::DATA_TYPE_BF16);
  expected.set_max_batch_for_budget_bytes(0);
  v1::AttentionOptions& options = *expected.mutable_options();
  options.set_scale(-0.25F);
  options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
  options.set_return_lse(true);
  options.set_window_left(0);
  for (const int64_t length : {3, 1, 2}) options.add_key_lengths(length);
  options.mutable_bias()->set_dtype(v1::DATA_TYPE_F16);
  options.mutable_bias()->add_shape(7);
  const v1::MemoryEstimateRequest request =
      FromQuery({{"seq_len", "9223372036854775807"},
                 {"dtype", "DATA_TYPE_BF16"},
                 {"max_batch_for_budget_bytes", "0"},
                 {"options.scale", "-2.5e-1"},
                 {"options.causal", "CAUSAL_BOTTOM_RIGHT"},
                 {"options.return_lse", "true"},
                 {"options.window_left", "0"},
                 {"options.key_lengths", "3,1"},
                 {"options.key_lengths", "2"},
                 {"options.bias.dtype", "DATA_TYPE_F16"},
                 {"options.bias.shape", "7"}});
  EXPECT_TRUE(MessageDifferencer::Equals(request, expected))
      << request.ShortDebugString();
  EXPECT_TRUE(
      MessageDifferencer::Equals(FromQuery({}), v1::MemoryEstimateRequest()));
}

TEST(MessageTextTest, AnErrorNamesTheParameterAndWhatItTakes) {
  const struct {
    Params params;
    std::string field;
    std::string text;
  } cases[] = {
      {{{"seqlen", "1"}}, "seqlen", "seq_len, dimensions, batch"},
      {{{"seqLen", "1"}}, "seqLen", "seq_len"},
      {{{"", "1"}}, "", "seq_len"},
      {{{"options.causl", "1"}}, "options.causl", "block_size, layout, causal"},
      {{{"options..causal", "1"}}, "options.", "causal"},
      {{{"seq_len", "many"}}, "seq_len", "a whole number"},
      {{{"seq_len", ""}}, "seq_len", "a whole number"},
      {{{"seq_len", "1e30"}}, "seq_len", "a whole number"},
      {{{"seq_len", "9223372036854775808"}}, "seq_len", "a whole number"},
      {{{"seq_len", "1"}, {"seq_len", "2"}}, "seq_len", "one value"},
      {{{"seq_len.x", "1"}}, "seq_len", "no field below it"},
      {{{"options", "1"}}, "options", "as in options.scale"},
      {{{"estimate", "1"}}, "estimate", "the default"},
      {{{"options.return_lse", "2"}}, "options.return_lse", "true or false"},
      {{{"options.scale", "x"}}, "options.scale", "a number"},
      {{{"options.causal", "LEFT"}}, "options.causal", "CAUSAL_TOP_LEFT"},
      {{{"options.key_lengths", "1,,2"}},
       "options.key_lengths[1]",
       "a whole number"},
      {{{"options.key_lengths.x", "1"}}, "options.key_lengths", "no field"},
      {{{"seq_len", "\xff"}}, "seq_len", "printable ASCII"},
      {{{"seq_len", std::string("1\0", 2)}}, "seq_len", "printable ASCII"}};
  for (const auto& [params, field, text] : cases) {
    const absl::Status status = QueryError(params);
    EXPECT_EQ(FieldOf(status).value_or(""), field) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  EXPECT_THAT(std::string(QueryError({{"", "1"}}).message()),
              StartsWith("expected a field of MemoryEstimateRequest (seq_len"));
  EXPECT_THAT(std::string(QueryError({{"max_batch_for_budget_bytes", "1"},
                                      {"max_seq_len_for_budget_bytes", "1"}})
                              .message()),
              HasSubstr("goal"));
}

TEST(MessageTextTest, WrongJsonNamesTheField) {
  const struct {
    std::string json;
    std::string field;
    std::string text;
  } cases[] = {
      {R"({"seq_len": "x"})", "seq_len", "a whole number of 64 bits, got"},
      {R"({"options": {"causal": "NO"}})", "options.causal", "CAUSAL_TOP_LEFT"},
      {R"({"options": {"causl": 1}})", "options.causl", "layout, causal"},
      {R"({"foo": 1})", "foo", "seq_len"},
      {R"({"options": {"key_lengths": [1, "z"]}})", "options.key_lengths[1]",
       "a whole number"},
      {R"({"options": 5})", "options", "AttentionOptions"},
      {R"({"options": {"returnLse": 1}})", "options.return_lse", "true or"},
      {R"({"options": {"bias": {"data": "!"}}})", "options.bias.data",
       "base64"},
  };
  for (const auto& [json, field, text] : cases) {
    const absl::Status status = JsonError(json);
    EXPECT_EQ(FieldOf(status), field) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  for (const char* json : {"", "[]", "{", "\xff\xfe", "{} x", "1", "\"\""}) {
    const absl::Status status = JsonError(json);
    EXPECT_THAT(std::string(status.message()), HasSubstr("the JSON is wrong"));
    for (const char c : status.message()) {
      EXPECT_TRUE(c >= ' ' && c <= '~') << json;
    }
  }
  std::string deep;
  for (int i = 0; i < 20'000; ++i) deep += R"({"options":)";
  EXPECT_FALSE(JsonError(deep).ok());
}

TEST(MessageTextTest, TakesAnyTextWithoutHarm) {
  std::mt19937_64 rng(1);
  const std::string alphabet = R"({}[]":,.0123456789eE+-seq_lnoptiasCAUL)";
  for (int i = 0; i < 20'000; ++i) {
    std::string text(rng() % 40, ' ');
    for (char& c : text) c = alphabet[rng() % alphabet.size()];
    v1::MemoryEstimateRequest request;
    // These must not crash, and must have an error text that can be sent.
    for (const absl::Status& status :
         {ParseJson(text, request),
          ParseQuery({{text.substr(0, 10), text}}, request)}) {
      for (const char c : status.message()) ASSERT_TRUE(c >= ' ' && c <= '~');
    }
  }
}

TEST(MessageTextTest, JsonHasEveryFieldAndBigNumbersAsStrings) {
  v1::MemoryEstimateResponse response;
  response.set_peak_bytes(int64_t{1} << 60);
  const std::string json = ToJson(response);
  EXPECT_THAT(json, HasSubstr(R"("peak_bytes":"1152921504606846976")"));
  EXPECT_THAT(json, HasSubstr(R"("fits":false)"));
  v1::MemoryEstimateResponse back;
  EXPECT_TRUE(ParseJson(json, back).ok());
  EXPECT_TRUE(MessageDifferencer::Equals(back, response));
}

TEST(MessageTextTest, CsvHasALineOfNamesAndALineOfValues) {
  v1::MemoryEstimateResponse response;
  response.set_naive_bytes(5);
  response.set_reduction_ratio(0.1);
  response.set_fits(true);
  response.set_limiting_factor("a \"b\", c");
  response.set_max_batch(0);
  EXPECT_EQ(
      ToCsv(response),
      "naive_bytes,flash_bytes,reduction_ratio,input_bytes,output_bytes,"
      "workspace_bytes,wire_bytes,peak_per_request_bytes,peak_bytes,"
      "required_message_bytes,flops,fits,limiting_factor,max_seq_len,max_batch,"
      "max_concurrency\r\n"
      "5,0,0.1,0,0,0,0,0,0,0,0,true,\"a \"\"b\"\", c\",,0,\r\n");
}

TEST(MessageTextTest, OneFieldIsItsValueAlone) {
  v1::GetServerInfoResponse info;
  info.set_version("1.2.3");
  info.mutable_load()->set_in_flight(7);
  info.mutable_load()->mutable_uptime()->set_seconds(9);
  EXPECT_EQ(*FieldText(info, "version"), "1.2.3");
  EXPECT_EQ(*FieldText(info, "load.in_flight"), "7");
  EXPECT_EQ(*FieldText(info, "load.uptime"), "9s");
  info.mutable_load()->mutable_uptime()->set_nanos(500'000'000);
  EXPECT_EQ(*FieldText(info, "load.uptime"), "9.500s");
  EXPECT_EQ(*FieldText(info, "load.uptime.seconds"), "9");
  const struct {
    std::string path;
    std::string text;
  } cases[] = {
      {"load", "load: expected a field below it, as in load.uptime ("},
      {"features", "features: expected a field that is not a list"},
      {"load.methods", "load.methods: expected a field that is not a list"},
      {"load.methods.method", "load.methods: expected no field below it"},
      {"load.x", "load.x: expected a field of ServerLoad (uptime, "},
      {"", "expected a field of GetServerInfoResponse (version, "}};
  for (const auto& [path, text] : cases) {
    EXPECT_THAT(std::string(FieldText(info, path).status().message()),
                StartsWith(text));
  }
  v1::MemoryEstimateResponse unset;
  EXPECT_EQ(*FieldText(unset, "max_batch"), "");
  EXPECT_EQ(*FieldText(v1::ServerLoad(), "uptime"), "");
}

}  // namespace
}  // namespace attnd::server
