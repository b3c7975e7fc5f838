#include "server/admin/admin_site.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "attnd/v1/attention.pb.h"
#include "base/field_error.h"
#include "cost/container_memory.h"
#include "google/protobuf/wrappers.pb.h"
#include "server/admin/message_text.h"
#include "server/admin/planner_page.h"
#include "server/calls/plain_calls.h"
#include "server/metrics/metrics.h"
#include "server/planning/estimate.h"

namespace attnd::server {

// A path, what answers it, and whether that takes a body.
struct Page {
  absl::string_view path;
  HttpResponse (AdminSite::*answer)(const HttpRequest&) const;
  bool takes_post = false;

  static const std::vector<Page>& All() {
    static const auto& pages = *new std::vector<Page>{
        {"/", &AdminSite::Planner},
        {"/livez", &AdminSite::Livez},
        {"/readyz", &AdminSite::Readyz},
        {"/metrics", &AdminSite::Metrics},
        {"/v1/memory-estimate", &AdminSite::MemoryEstimate, true},
        {"/v1/container-limit", &AdminSite::ContainerLimit},
        {"/v1/server-info", &AdminSite::ServerInfo}};
    return pages;
  }
};

namespace {

constexpr char kText[] = "text/plain; charset=utf-8";
constexpr char kJson[] = "application/json";
constexpr char kCsv[] = "text/csv; charset=utf-8; header=present";

// The parameter that asks for the value of a single field, as plain text.
constexpr char kFieldParam[] = "field";

// Nothing here may be used by another site: not in a frame, and not by its
// scripts. Answers are of the moment.
HttpResponse Protected(HttpResponse response, std::string policy) {
  response.headers["Cache-Control"] = "no-store";
  response.headers["Content-Security-Policy"] = std::move(policy);
  response.headers["Referrer-Policy"] = "no-referrer";
  response.headers["X-Content-Type-Options"] = "nosniff";
  return response;
}
HttpResponse Protected(HttpResponse response) {
  return Protected(std::move(response),
                   "default-src 'none'; frame-ancestors 'none'");
}

HttpResponse Text(int status, absl::string_view text) {
  return Protected(
      {.status = status, .content_type = kText, .body = std::string(text)});
}

// Returns `text` as a string of JSON.
std::string JsonString(absl::string_view text) {
  google::protobuf::StringValue value;
  value.set_value(text.data(), text.size());
  return ToJson(value);
}

HttpResponse Error(int status, absl::string_view code, absl::string_view text,
                   absl::string_view field) {
  return Protected(
      {.status = status,
       .content_type = kJson,
       .body = absl::StrCat(R"({"error":{"code":)", JsonString(code),
                            R"(,"message":)", JsonString(text), R"(,"field":)",
                            JsonString(field), "}}\n")});
}

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    default:
      return 500;
  }
}

absl::string_view CodeOf(int http_status) {
  switch (http_status) {
    case 403:
      return "PERMISSION_DENIED";
    case 404:
      return "NOT_FOUND";
    case 405:
      return "UNIMPLEMENTED";
    case 500:
      return "INTERNAL";
    case 503:
      return "UNAVAILABLE";
    default:
      return "INVALID_ARGUMENT";
  }
}

HttpResponse Refuse(const absl::Status& status) {
  return Error(HttpStatusOf(status.code()),
               absl::StatusCodeToString(status.code()),
               {status.message().data(), status.message().size()},
               FieldOf(status).value_or(""));
}

// Returns the type of a header such as "Text/CSV; q=0.5", here "text/csv".
std::string MediaType(absl::string_view value) {
  return absl::AsciiStrToLower(
      absl::StripAsciiWhitespace(value.substr(0, value.find(';'))));
}

// Returns the weight of a type in the header Accept: 1 unless its parameter q
// says otherwise. 0 means that the client does not take the type. A weight that
// is no number counts as 0.
double Weight(absl::string_view range) {
  double weight = 1;
  for (const absl::string_view part : absl::StrSplit(range, ';')) {
    absl::string_view parameter = absl::StripAsciiWhitespace(part);
    if (absl::ConsumePrefix(&parameter, "q=") ||
        absl::ConsumePrefix(&parameter, "Q=")) {
      if (!absl::SimpleAtod(parameter, &weight)) return 0;
    }
  }
  return weight;
}

// Returns whether the client prefers CSV to JSON. Of types with the same weight
// it prefers the first one, and without a header JSON.
bool WantsCsv(absl::string_view accept) {
  // For each form, what the most exact range that matches it says.
  struct Form {
    const char* ranges[3];  // the most exact one first
    int exactness = 3;
    double weight = 0;
    int position = 0;
  };
  Form csv{{"text/csv", "text/*", "*/*"}};
  Form json{{kJson, "application/*", "*/*"}};
  int position = 0;
  for (const absl::string_view range : absl::StrSplit(accept, ',')) {
    const std::string type = MediaType(range);
    for (Form* form : {&csv, &json}) {
      for (int i = 0; i < form->exactness; ++i) {
        if (type != form->ranges[i]) continue;
        form->exactness = i;
        form->weight = Weight(range);
        form->position = position;
      }
    }
    ++position;
  }
  if (csv.weight != json.weight) return csv.weight > json.weight;
  return csv.weight > 0 && csv.position < json.position;
}

// Returns the name of the field that the client asks for, or nothing if it asks
// for the whole answer.
absl::StatusOr<std::optional<std::string>> AskedField(
    const HttpRequest& request) {
  const auto [first, last] = request.params.equal_range(kFieldParam);
  if (first == last) return std::nullopt;
  if (std::next(first) != last) {
    return FieldError(kFieldParam, "one value", "several");
  }
  return first->second;
}

HttpResponse Give(const google::protobuf::Message& message,
                  const HttpRequest& request, bool has_csv) {
  const auto field = AskedField(request);
  if (!field.ok()) return Refuse(field.status());
  if (*field) {
    const absl::StatusOr<std::string> text = FieldText(message, **field);
    // No line follows, because spreadsheets take it for a part of the number.
    return text.ok() ? Text(200, *text) : Refuse(text.status());
  }
  if (has_csv && WantsCsv(request.accept)) {
    return Protected({.content_type = kCsv, .body = ToCsv(message)});
  }
  return Protected(
      {.content_type = kJson, .body = absl::StrCat(ToJson(message), "\n")});
}

// Returns the parameters of the request itself.
std::multimap<std::string, std::string> MessageParams(
    const HttpRequest& request) {
  std::multimap<std::string, std::string> params = request.params;
  params.erase(kFieldParam);
  return params;
}

// Returns whether `host`, the value of the header, is localhost, `own_host` or
// an address. A web page cannot have a name that looks like an address.
bool IsLocalName(absl::string_view host, absl::string_view own_host) {
  if (host.empty()) return true;  // no browser sends it empty
  if (absl::ConsumePrefix(&host, "[")) return absl::StrContains(host, ']');
  const std::string name =
      absl::AsciiStrToLower(host.substr(0, host.find(':')));
  in_addr ignored{};
  return name == "localhost" || absl::EqualsIgnoreCase(name, own_host) ||
         inet_pton(AF_INET, name.c_str(), &ignored) == 1;
}

const Page* FindPage(const std::string& path) {
  for (const Page& page : Page::All()) {
    if (page.path == path) return &page;
  }
  return nullptr;
}

}  // namespace

HttpResponse AdminSite::Refuse(int status, absl::string_view problem) {
  return Error(status, CodeOf(status), problem, "");
}

HttpResponse AdminSite::Answer(const HttpRequest& request) const {
  std::optional<HttpResponse> refusal = RefuseUnread(request);
  if (refusal) return *std::move(refusal);
  return (this->*FindPage(request.path)->answer)(request);
}

std::optional<HttpResponse> AdminSite::RefuseUnread(
    const HttpRequest& request) const {
  if (options_.only_localhost &&
      !IsLocalName(request.host, options_.own_host)) {
    return Refuse(403,
                  "Host: expected localhost, an address or the host of "
                  "--admin-listen, because this port listens on loopback");
  }
  const Page* const page = FindPage(request.path);
  if (page == nullptr) {
    return Refuse(
        404, absl::StrCat("expected one of these paths: ",
                          absl::StrJoin(Page::All(), ", ",
                                        [](std::string* out, const Page& each) {
                                          absl::StrAppend(out, each.path);
                                        })));
  }
  const bool reads = request.method == "GET" || request.method == "HEAD";
  if (!reads && !(page->takes_post && request.method == "POST")) {
    const std::string allowed =
        page->takes_post ? "GET, HEAD, POST" : "GET, HEAD";
    HttpResponse response =
        Refuse(405, absl::StrCat("expected one of these methods: ", allowed));
    response.headers["Allow"] = allowed;
    return response;
  }
  // A web page of another site cannot send this type without asking first.
  if (!reads && MediaType(request.content_type) != kJson) {
    return Refuse(415, "expected the header Content-Type: application/json");
  }
  return std::nullopt;
}

HttpResponse AdminSite::Livez(const HttpRequest&) const {
  return Text(200, "ok\n");
}

HttpResponse AdminSite::Readyz(const HttpRequest&) const {
  const std::string why_not = options_.why_not_ready();
  return why_not.empty() ? Text(200, "ok\n")
                         : Text(503, absl::StrCat(why_not, "\n"));
}

HttpResponse AdminSite::Metrics(const HttpRequest&) const {
  return Protected({.content_type = kMetricsType,
                    .body = MetricsText(context_, options_.metrics)});
}

HttpResponse AdminSite::MemoryEstimate(const HttpRequest& request) const {
  v1::MemoryEstimateRequest question;
  const auto params = MessageParams(request);
  absl::Status status;
  if (request.method != "POST") {
    status = ParseQuery(params, question);
  } else if (!params.empty()) {
    status = FieldError(params.begin()->first,
                        "the whole question as JSON in the body",
                        "a parameter in the address");
  } else {
    status = ParseJson(request.body, question);
  }
  if (!status.ok()) return server::Refuse(status);
  const absl::StatusOr<v1::MemoryEstimateResponse> answer =
      EstimateMemory(question, context_.engine, context_.limits());
  if (!answer.ok()) return server::Refuse(answer.status());
  return Give(*answer, request, /*has_csv=*/true);
}

HttpResponse AdminSite::ContainerLimit(const HttpRequest& request) const {
  v1::MemoryEstimateRequest question;
  const absl::Status status = ParseQuery(MessageParams(request), question);
  if (!status.ok()) return server::Refuse(status);
  absl::StatusOr<ContainerMemory> memory =
      EstimateContainer(question, context_.engine, context_.limits());
  // A problem that fits no container has an answer, too. As in an estimate, the
  // largest int64 stands for all that is larger.
  std::string reason;
  if (absl::IsOutOfRange(memory.status())) {
    reason = std::string(memory.status().message());
    memory =
        ContainerMemory{.limit_bytes = std::numeric_limits<int64_t>::max()};
  }
  if (!memory.ok()) return server::Refuse(memory.status());
  // The contract has no message for this, so these names are only here. Numbers
  // are strings, as in the JSON form of protobuf.
  const std::map<std::string, std::string> values = {
      {"limit_bytes", absl::StrCat(memory->limit_bytes)},
      {"budget_bytes", absl::StrCat(memory->shares.budget_bytes)},
      {"arriving_bytes", absl::StrCat(memory->shares.arriving_bytes)},
      {"own_bytes", absl::StrCat(memory->shares.own_bytes)},
      {"max_message_bytes", absl::StrCat(memory->max_message_bytes)},
      {"reason", reason}};
  const auto field = AskedField(request);
  if (!field.ok()) return server::Refuse(field.status());
  if (!*field) {
    const auto append = [](std::string* out, const auto& value) {
      absl::StrAppend(out, JsonString(value.first), ":",
                      JsonString(value.second));
    };
    return Protected(
        {.content_type = kJson,
         .body = absl::StrCat("{", absl::StrJoin(values, ",", append), "}\n")});
  }
  const auto found = values.find(**field);
  if (found != values.end()) return Text(200, found->second);
  const auto append_name = [](std::string* out, const auto& value) {
    absl::StrAppend(out, value.first);
  };
  return server::Refuse(FieldError(
      kFieldParam,
      absl::StrCat("one of ", absl::StrJoin(values, ", ", append_name)),
      (*field)->empty() ? "no name" : **field));
}

HttpResponse AdminSite::ServerInfo(const HttpRequest& request) const {
  v1::GetServerInfoRequest question;
  const absl::Status status = ParseQuery(MessageParams(request), question);
  if (!status.ok()) return server::Refuse(status);
  return Give(DescribeServer(context_), request, /*has_csv=*/false);
}

HttpResponse AdminSite::Planner(const HttpRequest&) const {
  return Protected(
      {.content_type = "text/html; charset=utf-8",
       .body = std::string(PlannerPage())},
      "default-src 'none'; script-src 'unsafe-inline'; style-src "
      "'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
      "form-action 'none'; frame-ancestors 'none'");
}

}  // namespace attnd::server
