// Answers HTTP requests on a port of its own. Bounds what a client can make the
// server hold: threads, connections, bytes and time. Does not use gRPC.
#ifndef ATTND_SERVER_ADMIN_HTTP_PORT_H_
#define ATTND_SERVER_ADMIN_HTTP_PORT_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "server/connections/listener.h"

namespace attnd::server {

struct HttpRequest {
  std::string method = {};  // for example "GET"
  std::string path = {};    // as in the request, without the query
  // The query, decoded. A name can have several values, which keep their order.
  std::multimap<std::string, std::string> params = {};
  // The values of these headers; empty without them.
  std::string host = {};
  std::string accept = {};
  std::string content_type = {};
  std::string body = {};
};

struct HttpResponse {
  int status = 200;
  std::string content_type = {};
  std::string body = {};
  // Further headers, by name.
  std::map<std::string, std::string> headers = {};
};

// Serves requests until it is destroyed. Each connection serves one request.
// When as many clients wait as the port allows, it refuses further ones with
// 503. A client that is slow to send its request or to take the answer is cut
// off.
class HttpPort {
 public:
  // Returns the answer to a request. Runs in several threads at once.
  using Handler = std::function<HttpResponse(const HttpRequest&)>;
  // Returns the answer to a request that has not reached the handler, because
  // it is not HTTP or exceeds a limit. `problem` says why.
  using Refusal = std::function<HttpResponse(int status, std::string problem)>;

  // Starts the threads. Throws std::system_error if the system starts too few.
  HttpPort(Listener listener, Handler handler, Refusal refusal);
  // Cuts off the clients that are left, and joins the threads.
  ~HttpPort();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_ADMIN_HTTP_PORT_H_
