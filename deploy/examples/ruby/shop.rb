# frozen_string_literal: true

require "cgi"
require "set"

# Shop remembers the latest webhooks and shows them.
class Shop
  KEEP = 20 # webhooks on the page

  def initialize
    @lock = Mutex.new
    @seen = Set.new
    @latest = [] # newest first
  end

  # handle does what an event asks for, once, and says whether this was the first
  # time: webhooks come at least once, and sometimes twice. A real app keeps the
  # keys in its database, in the transaction that does the work.
  def handle(key, event)
    @lock.synchronize do
      return false unless @seen.add?(key)

      @latest.unshift(event.merge(at: Time.now.utc.strftime("%H:%M:%S")))
      @latest.pop if @latest.length > KEEP
      true
    end
  end

  def page(host)
    latest = @lock.synchronize { @latest.dup }
    rows = latest.map { |e| "<tr>" + e.values_at(:at, :from, :type, :id).map { |v| "<td>#{CGI.escapeHTML(v.to_s)}" }.join }
    <<~HTML
      <!doctype html>
      <html lang="en">
      <meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>Shop</title>
      <style>body { font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
      td { padding-right: 1.5rem }</style>
      <h1>Shop</h1>
      <p>You reached this app as #{CGI.escapeHTML(host.to_s)}.</p>
      <h2>Webhooks</h2>
      #{rows.empty? ? "<p>None yet.</p>" : "<table>#{rows.join("\n")}</table>"}
      </html>
    HTML
  end
end
