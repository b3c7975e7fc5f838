// What the admin port answers: health, metrics, the memory estimate and the
// state of the server, as JSON, CSV or plain text, and the planner page. Does
// not use gRPC.
#ifndef ATTND_SERVER_ADMIN_ADMIN_SITE_H_
#define ATTND_SERVER_ADMIN_ADMIN_SITE_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/admin/http_port.h"
#include "server/calls/service_context.h"
#include "server/metrics/metrics.h"

namespace attnd::server {

// Answers each request of the admin port. Thread-safe. It changes nothing in
// the server and takes no slot, so that it works while the server is full.
//
// To add a page, add a row to kPages in the source.
class AdminSite {
 public:
  struct Options {
    // Returns why the server is not ready, or an empty text if it is.
    std::function<std::string()> why_not_ready;
    // Whether to refuse requests whose Host is a name other than localhost and
    // `own_host`. On loopback, this keeps out web pages whose own name resolves
    // to loopback (DNS rebinding).
    bool only_localhost = true;
    std::string own_host = {};  // the host of --admin-listen
    // Metrics of parts of the server that are not in ServiceContext.
    std::vector<MetricNumber> metrics = {};
  };

  // `context` must outlive the site, and its `load` must not be null.
  AdminSite(const ServiceContext& context, Options options)
      : context_(context), options_(std::move(options)) {}

  HttpResponse Answer(const HttpRequest& request) const;
  // Returns the answer to a request that is refused whatever its body is, such
  // as one of another site, or nothing. Answer refuses such requests as well.
  std::optional<HttpResponse> RefuseUnread(const HttpRequest& request) const;
  // Returns the answer with `status` whose text is `problem`.
  static HttpResponse Refuse(int status, absl::string_view problem);

 private:
  friend struct Page;

  HttpResponse Livez(const HttpRequest& request) const;
  HttpResponse Readyz(const HttpRequest& request) const;
  HttpResponse Metrics(const HttpRequest& request) const;
  HttpResponse MemoryEstimate(const HttpRequest& request) const;
  HttpResponse ContainerLimit(const HttpRequest& request) const;
  HttpResponse ServerInfo(const HttpRequest& request) const;
  HttpResponse Planner(const HttpRequest& request) const;

  const ServiceContext& context_;
  const Options options_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_ADMIN_ADMIN_SITE_H_
