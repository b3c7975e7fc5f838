#include "server/admin/admin_site.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "server/admin/message_text.h"
#include "server/planning/estimate.h"

namespace attnd::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class AdminSiteTest : public ::testing::Test {
 protected:
  HttpResponse Get(const std::string& path,
                   const std::multimap<std::string, std::string>& params = {},
                   const std::string& accept = "") {
    return site_.Answer({.method = "GET",
                         .path = path,
                         .params = params,
                         .host = "localhost:50052",
                         .accept = accept});
  }
  HttpResponse Post(const std::string& body,
                    const std::string& type = "application/json") {
    return site_.Answer({.method = "POST",
                         .path = "/v1/memory-estimate",
                         .host = "127.0.0.1:50052",
                         .content_type = type,
                         .body = body});
  }

  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{1LL << 30, 3};
  LoadMeter load_;
  ServiceContext context_{.engine = engine_,
                          .admission = admission_,
                          .max_message_bytes = 16LL << 20,
                          .max_benchmark_vectors = 1024,
                          .load = &load_};
  std::string why_not_ready_;
  AdminSite site_{context_,
                  {.why_not_ready = [this] { return why_not_ready_; }}};
};

TEST_F(AdminSiteTest, LiveAndReadyAreTwoThings) {
  EXPECT_EQ(Get("/livez").status, 200);
  EXPECT_EQ(Get("/readyz").status, 200);
  why_not_ready_ = "draining";
  EXPECT_EQ(Get("/livez").status, 200);
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/readyz").body, "draining\n");
}

TEST_F(AdminSiteTest, HasMetrics) {
  const HttpResponse metrics = Get("/metrics");
  EXPECT_EQ(metrics.status, 200);
  EXPECT_EQ(metrics.content_type, "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_THAT(metrics.body, HasSubstr("\nattnd_max_slots 3\n"));
}

TEST_F(AdminSiteTest, EstimatesAsTheRpcDoes) {
  v1::MemoryEstimateRequest question;
  question.set_seq_len(4096);
  question.set_num_q_heads(32);
  const auto answer = EstimateMemory(question, engine_, context_.limits());
  ASSERT_TRUE(answer.ok());
  const std::multimap<std::string, std::string> params = {
      {"seq_len", "4096"}, {"num_q_heads", "32"}};
  EXPECT_EQ(Get("/v1/memory-estimate", params).body, ToJson(*answer) + "\n");
  EXPECT_EQ(Get("/v1/memory-estimate", params).content_type,
            "application/json");
  EXPECT_EQ(Post(R"({"seq_len": 4096, "numQHeads": "32"})").body,
            ToJson(*answer) + "\n");
  auto one = params;
  one.insert({"field", "peak_bytes"});
  EXPECT_EQ(Get("/v1/memory-estimate", one).body,
            std::to_string(answer->peak_bytes()));
  EXPECT_THAT(Get("/v1/memory-estimate", one).content_type,
              StartsWith("text/plain"));
  for (const char* csv :
       {"text/csv", "TEXT/CSV;q=0.5", "image/png, text/csv, */*", "text/*",
        "application/json;q=0.5, text/csv", "*/*;q=0.1, text/csv; Q=0.2",
        "application/json;q=0, */*"}) {
    EXPECT_EQ(Get("/v1/memory-estimate", params, csv).body, ToCsv(*answer));
  }
  for (const char* json :
       {"", "*/*", "application/json, text/csv", "text/csvx",
        "text/html,*/*;q=0.8", "text/csv;q=0", "text/csv; q=0.0, text/*",
        "text/csv;q=x", "text/csv;q=0.5, application/json",
        "text/csv;q=0, */*"}) {
    EXPECT_EQ(Get("/v1/memory-estimate", params, json).body,
              ToJson(*answer) + "\n");
  }
}

TEST_F(AdminSiteTest, SolvesForTheLimitOfAContainer) {
  v1::MemoryEstimateRequest question;
  question.set_seq_len(4096);
  question.set_num_q_heads(32);
  question.set_concurrency(2);
  const auto memory = EstimateContainer(question, engine_, context_.limits());
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_GE(memory->shares.budget_bytes, memory->need.peak_bytes);
  std::multimap<std::string, std::string> params = {
      {"seq_len", "4096"}, {"num_q_heads", "32"}, {"concurrency", "2"}};
  const std::string limit = std::to_string(memory->limit_bytes);
  EXPECT_THAT(Get("/v1/container-limit", params).body,
              HasSubstr(R"("limit_bytes":")" + limit + '"'));
  EXPECT_THAT(Get("/v1/container-limit", params).body,
              HasSubstr(R"("reason":"")"));
  params.insert({"field", "limit_bytes"});
  EXPECT_EQ(Get("/v1/container-limit", params).body, limit);
  EXPECT_EQ(
      Get("/v1/container-limit", {{"seq_len", "8"}, {"field", "x"}}).status,
      400);
  const HttpResponse wrong = Get("/v1/container-limit", {{"seq_len", "-1"}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_THAT(wrong.body, HasSubstr(R"("field":"seq_len")"));
  const HttpResponse goal =
      Get("/v1/container-limit",
          {{"seq_len", "8"}, {"max_seq_len_for_budget_bytes", "1000000"}});
  EXPECT_EQ(goal.status, 400);
  EXPECT_THAT(goal.body,
              HasSubstr(R"("field":"max_seq_len_for_budget_bytes")"));
  // A message of more than 2 GiB.
  const HttpResponse none =
      Get("/v1/container-limit", {{"seq_len", "10000000"}});
  EXPECT_EQ(none.status, 200);
  EXPECT_THAT(none.body, HasSubstr(R"("limit_bytes":"9223372036854775807")"));
  EXPECT_THAT(none.body, HasSubstr(R"("reason":"the call needs a message)"));
}

TEST_F(AdminSiteTest, ErrorsAreJsonWithTheField) {
  const HttpResponse wrong =
      Get("/v1/memory-estimate", {{"seq_len", "8"}, {"num_q_heads", "-1"}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_EQ(wrong.content_type, "application/json");
  EXPECT_THAT(wrong.body,
              StartsWith(R"({"error":{"code":"INVALID_ARGUMENT","message":)"));
  EXPECT_THAT(wrong.body, HasSubstr(R"("field":"num_q_heads"}})"));
  // What a client sends cannot end the string that it is in.
  EXPECT_THAT(Get("/v1/memory-estimate", {{"\"}<script>", "1"}}).body,
              HasSubstr(R"("field":"\\\"}\u003cscript\u003e")"));
  EXPECT_EQ(Post("{").status, 400);
  EXPECT_EQ(Post("{}", "text/plain").status, 415);
  EXPECT_EQ(Post("{}", "").status, 415);
  EXPECT_EQ(Post("{}", "application/jsonx").status, 415);
  EXPECT_EQ(
      Get("/v1/memory-estimate", {{"seq_len", "8"}, {"field", "x"}}).status,
      400);
  EXPECT_EQ(Get("/v1/server-info", {{"x", "1"}}).status, 400);
  for (const char* path :
       {"/v1/memory-estimate", "/v1/container-limit", "/v1/server-info"}) {
    std::multimap<std::string, std::string> twice = {{"field", "flops"},
                                                     {"field", "flops"}};
    if (path != std::string("/v1/server-info")) twice.insert({"seq_len", "8"});
    const HttpResponse answer = Get(path, twice);
    EXPECT_EQ(answer.status, 400) << path;
    EXPECT_THAT(answer.body, HasSubstr("field: expected one value"));
    EXPECT_THAT(answer.body, HasSubstr(R"("field":"field")"));
  }
  EXPECT_THAT(
      Get("/v1/container-limit", {{"seq_len", "8"}, {"field", ""}}).body,
      HasSubstr("got no name"));
  EXPECT_EQ(Get("/v2").status, 404);
  EXPECT_EQ(Get("/v1/memory-estimate/").status, 404);
  HttpRequest put{.method = "PUT", .path = "/livez"};
  EXPECT_EQ(site_.Answer(put).status, 405);
  EXPECT_EQ(site_.Answer(put).headers.at("Allow"), "GET, HEAD");
}

TEST_F(AdminSiteTest, TellsTheLoadWhileEverySlotIsTaken) {
  std::vector<Admission::Reservation> taken;
  for (int i = 0; i < 3; ++i) {
    auto reservation = admission_.Admit(100);
    ASSERT_TRUE(reservation.ok());
    taken.push_back(*std::move(reservation));
  }
  EXPECT_EQ(Get("/v1/server-info", {{"field", "load.in_flight"}}).body, "3");
  EXPECT_EQ(Get("/v1/server-info", {{"field", "load.reserved_bytes"}}).body,
            "300");
  EXPECT_THAT(Get("/v1/server-info").body,
              HasSubstr(R"("memory_budget_bytes":"1073741824")"));
  EXPECT_EQ(Get("/v1/memory-estimate", {{"seq_len", "8"}}).status, 200);
}

TEST_F(AdminSiteTest, OtherSitesGetNothing) {
  for (const char* host : {"evil.example", "localhost.evil.example:50052",
                           "127.0.0.1.evil.example", "1", "[::1"}) {
    EXPECT_EQ(site_.Answer({.method = "GET", .path = "/", .host = host}).status,
              403)
        << host;
  }
  for (const char* host :
       {"", "localhost", "LocalHost:1", "127.0.0.1:50052", "[::1]:7"}) {
    EXPECT_EQ(site_.Answer({.method = "GET", .path = "/", .host = host}).status,
              200)
        << host;
  }
  // A form is the only kind of body that a web page can send unasked.
  const struct {
    HttpRequest post;
    int status;
  } posts[] = {
      {{.method = "POST", .path = "/v1/memory-estimate", .host = "evil"}, 403},
      {{.method = "POST", .path = "/v2"}, 404},
      {{.method = "POST", .path = "/livez"}, 405},
      {{.method = "POST",
        .path = "/v1/memory-estimate",
        .content_type = "multipart/form-data; boundary=application/json"},
       415}};
  for (const auto& [post, status] : posts) {
    const auto refusal = site_.RefuseUnread(post);
    ASSERT_TRUE(refusal.has_value()) << status;
    EXPECT_EQ(refusal->status, status);
    EXPECT_EQ(site_.Answer(post).status, status);
  }
  EXPECT_FALSE(site_.RefuseUnread({.method = "POST",
                                   .path = "/v1/memory-estimate",
                                   .content_type = "Application/JSON; a=b"}));
  const AdminSite named(
      context_, {.why_not_ready = [] { return ""; }, .own_host = "My-Host"});
  const auto status = [&](const char* host) {
    return named.Answer({.method = "GET", .path = "/", .host = host}).status;
  };
  EXPECT_EQ(status("my-host:50052"), 200);
  EXPECT_EQ(status("localhost"), 200);
  EXPECT_EQ(status("my-host.evil.example"), 403);
  const AdminSite wide(
      context_, {.why_not_ready = [] { return ""; }, .only_localhost = false});
  EXPECT_EQ(wide.Answer({.method = "GET", .path = "/", .host = "attnd"}).status,
            200);
  for (const char* path : {"/", "/livez", "/v1/server-info", "/nothing"}) {
    const HttpResponse response = Get(path);
    EXPECT_EQ(response.headers.at("X-Content-Type-Options"), "nosniff");
    EXPECT_EQ(response.headers.at("Cache-Control"), "no-store");
    EXPECT_THAT(response.headers.at("Content-Security-Policy"),
                HasSubstr("frame-ancestors 'none'"));
    EXPECT_EQ(response.headers.count("Access-Control-Allow-Origin"), 0U);
  }
}

}  // namespace
}  // namespace attnd::server
