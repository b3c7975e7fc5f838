// Answers HTTP requests on a port of its own. Bounds what a client can make the
// server hold: threads, connections, bytes and time. Does not use gRPC.
#ifndef ATTND_SERVER_ADMIN_HTTP_PORT_H_
#define ATTND_SERVER_ADMIN_HTTP_PORT_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
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
// A client gets a thread once it has sent something. When as many clients wait
// as the port allows, it refuses the oldest one that has sent nothing, or else
// the new one, with 503. A client that is slow to send its request or to take
// the answer is cut off.
class HttpPort {
 public:
  // What the port serves. The functions run in several threads at once.
  struct Site {
    // Returns the answer to a request.
    std::function<HttpResponse(const HttpRequest&)> answer;
    // Gets each POST before its body is read. Returns the answer that refuses
    // it, or nothing if the port shall read the body and ask for the answer.
    std::function<std::optional<HttpResponse>(const HttpRequest&)>
        refuse_unread;
    // Returns the answer to a request that is not HTTP or exceeds a limit.
    // `why` says what is wrong with it.
    std::function<HttpResponse(int status, std::string why)> problem;
  };

  // Starts the threads. Throws std::system_error if the system starts too few.
  HttpPort(Listener listener, Site site);
  // Cuts off the clients that are left, and joins the threads.
  ~HttpPort();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_ADMIN_HTTP_PORT_H_
