# frozen_string_literal: true

require_relative "shop"
require_relative "verify"

# App answers requests; it is used by several threads.
class App
  MAX_BODY = 1 << 20 # of a webhook, bytes

  def initialize(stripe_secret:, github_secret:)
    @shop = Shop.new
    @webhooks = {
      "/webhooks/stripe" => ["stripe", ->(env, body) { Verify.stripe(stripe_secret, env, body) }],
      "/webhooks/github" => ["github", ->(env, body) { Verify.github(github_secret, env, body) }]
    }
  end

  def call(env)
    case [env["REQUEST_METHOD"], env["PATH_INFO"]]
    in ["GET", "/"] then answer(200, @shop.page(env["HTTP_HOST"]), "text/html; charset=utf-8")
    in ["GET", "/healthz"] then answer(200, "ok\n")
    in ["POST", path] if @webhooks.key?(path) then take(env, *@webhooks[path])
    else answer(404, "not found\n")
    end
  end

  private

  # take answers 2xx only when the event was handled: anything else makes the
  # sender, or Postern, try again.
  def take(env, from, verify)
    body = env["rack.input"]&.read(MAX_BODY + 1) || "" # byte for byte: that is what was signed
    return answer(413, "the body is too long\n") if body.bytesize > MAX_BODY

    id, type = verify.call(env, body)
    # The same for every delivery of one event.
    key = "#{from}/#{env["HTTP_IDEMPOTENCY_KEY"] || id}"
    word = @shop.handle(key, from: from, type: type, id: id) ? "handled" : "known already"
    puts "webhook #{word} from=#{from} id=#{id} type=#{type}"
    [204, {}, []]
  rescue Verify::Refused => e
    puts "webhook refused from=#{from} reason=#{e.message.inspect}"
    answer(401, "#{e.message}\n")
  end

  def answer(status, text, type = "text/plain; charset=utf-8")
    [status, { "content-type" => type, "content-length" => text.bytesize.to_s }, [text]]
  end
end
