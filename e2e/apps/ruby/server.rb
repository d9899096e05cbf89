# A web server on Ruby's own sockets. See ../README.md for its mistakes.
require "socket"
require "openssl"

$stdout.sync = true
mistake = ARGV[0].to_s
fixed = ENV["APP_PORT"].to_i
port = mistake == "fixed" ? fixed : (ENV["PORT"] || fixed).to_i

if ENV["APP_TETHER"]
  Thread.new do
    $stdin.read
    exit!(1)
  end
end

# One connection, kept alive.
def answer(conn)
  while (line = conn.gets)
    length = 0
    while (header = conn.gets) && header.strip != ""
      length = header.split(":", 2)[1].to_i if header =~ /\Acontent-length:/i
    end
    conn.read(length) if length > 0
    body = "hello from ruby\n"
    body = "" if line.start_with?("HEAD ")
    conn.write("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\r\n#{body}")
  end
rescue SystemCallError, IOError, OpenSSL::SSL::SSLError
  # The client has gone.
ensure
  conn.close
end

def serve(listener)
  # A closed listener ends the loop; a trap may not do much more than this.
  trap("TERM") { exit!(0) }
  puts "listening on #{listener.addr.inspect}" if listener.respond_to?(:addr)
  loop do
    conn = begin
      listener.accept
    rescue OpenSSL::SSL::SSLError
      next
    end
    Thread.new(conn) { |c| answer(c) }
  end
rescue IOError
  nil
end

case mistake
when "", "fixed"
  serve(TCPServer.new("0.0.0.0", port))
when "loopback"
  serve(TCPServer.new("127.0.0.1", port))
when "ipv6"
  socket = Socket.new(:INET6, :STREAM)
  socket.setsockopt(:IPV6, :V6ONLY, 1)
  socket.setsockopt(:SOCKET, :REUSEADDR, 1)
  socket.bind(Addrinfo.tcp("::", port))
  socket.listen(64)
  serve(TCPServer.for_fd(socket.fileno))
when "hostname"
  serve(TCPServer.new(ENV.fetch("HOSTNAME"), port))
when "mute"
  puts "waiting for the database"
  sleep
when "crash"
  warn "key not found: \"DATABASE_URL\" (KeyError)"
  exit 3
when "debugger"
  debugger = TCPServer.new("0.0.0.0", fixed)
  serve(TCPServer.new("0.0.0.0", port))
when "lost"
  listener = TCPServer.new("0.0.0.0", port)
  Thread.new do
    sleep 2.5
    listener.close
  end
  serve(listener)
  sleep
when "tls"
  context = OpenSSL::SSL::SSLContext.new
  context.cert = OpenSSL::X509::Certificate.new(File.read("#{ENV["APP_TLS"]}/cert.pem"))
  context.key = OpenSSL::PKey.read(File.read("#{ENV["APP_TLS"]}/key.pem"))
  serve(OpenSSL::SSL::SSLServer.new(TCPServer.new("0.0.0.0", port), context))
else
  abort "no such mistake: #{mistake}"
end
